"""What a measurement gives: a number, what was wanted of it, and whether that holds."""

from __future__ import annotations

import json
import operator
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil
import trio

from p2p_mesh.groups import bare

OTHERS = 0.25
"""Cores that other programs may take during a run; above it the run is repeated."""

TRIES = 5
T = TypeVar("T")
_COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt}


@dataclass(frozen=True)
class Figure:
    name: str
    value: float
    unit: str
    sign: Literal["<=", ">=", "<", ""] = ""
    """Empty: nothing is wanted of it."""
    bound: float = 0.0

    @property
    def wanted(self) -> str:
        return f"{self.sign} {self.bound:g}" if self.sign else ""

    @property
    def holds(self) -> bool:
        return not self.sign or bool(_COMPARE[self.sign](self.value, self.bound))

    @property
    def verdict(self) -> str:
        if not self.sign:
            return ""
        return "holds" if self.holds else "MISSED"

    def row(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": round(self.value, 3),
            "unit": self.unit,
            "wanted": self.wanted,
            "holds": self.holds,
        }


def show(figures: Sequence[Figure]) -> None:
    rows = [("figure", "value", "unit", "wanted", "")]
    rows += [(one.name, f"{one.value:.3f}", one.unit, one.wanted, one.verdict) for one in figures]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


async def undisturbed(run: Callable[[], Awaitable[T]], tries: int = TRIES) -> T:
    """What `run` gives in a run during which no other program took the cores; after so many
    tries, the least disturbed one.
    """
    best: tuple[float, T] | None = None
    for left in reversed(range(tries)):
        before, start = _others_seconds(), trio.current_time()
        result = await run()
        share = (_others_seconds() - before) / (trio.current_time() - start)
        if best is None or share < best[0]:
            best = share, result
        if share <= OTHERS:
            break
        what = "repeated" if left else "no more tries"
        print(f"other programs took {share:.2f} cores: {what}", file=sys.stderr)
    assert best is not None
    return best[1]


def _others_seconds() -> float:
    """CPU seconds that were taken by programs which are neither this one nor its children, or
    by other machines on the same cores.
    """
    times = psutil.cpu_times()
    busy = times.user + times.nice + times.system + getattr(times, "steal", 0.0)
    own = psutil.Process().cpu_times()
    ours = own.user + own.system + own.children_user + own.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            spent = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        ours += spent.user + spent.system + spent.children_user + spent.children_system
    return float(busy - ours)


def conclude(figures: Sequence[Figure], file: Path | None) -> int:
    """Shows the figures, and writes them to a file; the exit code: 1 where one is not as wanted."""
    show(figures)
    if file is not None:
        file.write_text(json.dumps({"figures": [one.row() for one in figures]}, indent=2))
    return 0 if all(one.holds for one in figures) else 1


def run(program: Callable[[], Awaitable[T]]) -> T:
    """What came of it. Ctrl-C and SIGTERM end it, with all that it started."""
    try:
        with bare():
            return trio.run(_until_told, program)
    except KeyboardInterrupt:
        sys.exit("interrupted")


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
