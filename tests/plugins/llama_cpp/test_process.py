"""How a process beside the node is started, and what it may know."""

from __future__ import annotations

import os

import psutil
import pytest
import trio
from meshnode_llama_cpp import process
from meshnode_llama_cpp.process import environment

from p2p_mesh.errors import EngineDied


def test_an_engine_knows_no_secret() -> None:
    ours = {
        "PATH": "/bin",
        "HOME": "/root",
        "CUDA_VISIBLE_DEVICES": "0",
        "MESHNODE_API_KEY": "secret",
        "OPENAI_API_KEY": "secret",
        "LD_PRELOAD": "/tmp/evil.so",
    }
    assert environment(ours, ["", "/site"]) == {
        "PATH": "/bin",
        "HOME": "/root",
        "CUDA_VISIBLE_DEVICES": "0",
        "GGML_NO_BACKTRACE": "1",
        "MALLOC_ARENA_MAX": "1",
        "PYTHONPATH": "/site",
    }


@pytest.mark.parametrize(
    ("usable", "physical", "threads"), [(1, 1, 1), (2, 2, 1), (16, 8, 8), (8, 8, 7), (4, None, 3)]
)
def test_one_processor_is_left_to_others(
    usable: int, physical: int | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: physical)
    assert process.threads() == threads


async def test_of_tasks_that_fail_together_the_first_error_is_raised() -> None:
    async def fail() -> None:
        raise EngineDied("gone")

    async def fail_together() -> None:
        async with trio.open_nursery() as nursery, trio.open_nursery() as inner:
            for one in (nursery, nursery, inner):
                one.start_soon(fail)

    with pytest.raises(EngineDied, match="gone"), process.alone():
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
    with pytest.raises(EngineDied), process.alone():
        raise both
    with pytest.raises(BaseExceptionGroup), process.alone():
        raise BaseExceptionGroup("", seen)
