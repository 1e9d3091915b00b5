"""What the proofs share: their options, how they end, and the form of their figures."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio
from benches.figures import Figure, show

T = TypeVar("T")
Prove = Callable[[int], Awaitable[list[Figure]]]
"""How many of what is counted, to what came of it."""


def main(description: str | None, counted: str, usual: int, prove: Prove) -> int:
    """The exit code: 1 where a figure is not as wanted. Ctrl-C and SIGTERM end all that runs."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(f"--{counted}", type=_positive, default=usual, metavar="N", dest="count",
                        help=f"how many {counted} (default: {usual})")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    figures = run(partial(prove, given.count))
    show(figures)
    if given.json:
        given.json.write_text(json.dumps({"figures": [one.row() for one in figures]}, indent=2))
    return 0 if all(one.holds for one in figures) else 1


def run(program: Callable[[], Awaitable[T]]) -> T:
    """What came of it. Ctrl-C and SIGTERM end it, with all that it started."""
    try:
        return trio.run(_until_told, program)
    except* KeyboardInterrupt:
        sys.exit("interrupted")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


async def _until_told(program: Callable[[], Awaitable[T]]) -> T:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_interrupt)
        result = await program()
        nursery.cancel_scope.cancel()
    return result


async def _interrupt() -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        await anext(aiter(signals))
        raise KeyboardInterrupt
