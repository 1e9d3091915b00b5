"""Errors out of nurseries."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import trio

from p2p_mesh.errors import EngineDied
from p2p_mesh.groups import bare


async def fail(error: Exception) -> None:
    raise error


async def nested() -> None:
    with bare():
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            inner.start_soon(fail, KeyError())
            outer.start_soon(trio.sleep_forever)


async def test_first_error_comes_out_bare() -> None:
    with pytest.raises(KeyError):
        await nested()


async def test_cancellation_passes() -> None:
    with trio.move_on_after(0) as scope, bare():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
    assert scope.cancelled_caught


def test_plain_error_passes() -> None:
    with pytest.raises(ValueError, match="plain"), bare():
        raise ValueError("plain")


async def test_of_tasks_that_fail_together_the_first_error_is_raised() -> None:
    async def fail() -> None:
        raise EngineDied("gone")

    async def fail_together() -> None:
        async with trio.open_nursery() as nursery, trio.open_nursery() as inner:
            for one in (nursery, nursery, inner):
                one.start_soon(fail)

    with pytest.raises(EngineDied, match="gone"), bare():
        await fail_together()


def test_an_error_beside_cancelled_tasks_is_raised() -> None:
    async def cancel() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                seen.append(error)
                raise

    seen: list[trio.Cancelled] = []
    trio.run(cancel)
    both = BaseExceptionGroup("", [*seen, BaseExceptionGroup("", [EngineDied("gone")])])
    with pytest.raises(EngineDied), bare():
        raise both
    with pytest.raises(BaseExceptionGroup), bare():
        raise BaseExceptionGroup("", seen)


def test_nothing_is_raised_in_except_star() -> None:
    """Python before 3.11.4 wraps it into a group, which no caller expects."""
    root = Path(__file__).parents[1]
    raising = [
        f"{file}:{handler.lineno}"
        for folder in ("p2p_mesh", "plugins", "scripts")
        for file in (root / folder).rglob("*.py")
        for block in ast.walk(ast.parse(file.read_bytes()))
        if isinstance(block, ast.TryStar)
        for handler in block.handlers
        if any(isinstance(node, ast.Raise) or ends(node) for node in ast.walk(handler))
    ]
    assert raising == []


def ends(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "exit"
