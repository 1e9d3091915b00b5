"""`scripts/bench NAME [--quick] [--json FILE]`: measures, prints a table, says what holds."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio
from figures import Figure, show

NAMES = ("light", "engine", "mesh", "idle")

Measure = Callable[[], Awaitable[list[Figure]]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--quick", action="store_true", help="a rough look, where there is one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    bench = importlib.import_module(given.name)
    if given.quick and not hasattr(bench, "QUICK"):
        parser.error(f"{given.name} is always quick")
    measure = partial(bench.measure, bench.QUICK) if given.quick else bench.measure
    try:
        figures = trio.run(_until_told, measure)
    except* KeyboardInterrupt:
        sys.exit("interrupted")
    show(figures)
    if given.json:
        given.json.write_text(json.dumps({"figures": [one.row() for one in figures]}, indent=2))
    return 0 if all(one.holds for one in figures) else 1


async def _until_told(measure: Measure) -> list[Figure]:
    """SIGTERM ends it as Ctrl-C does: with all that was started."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_interrupt)
        figures = await measure()
        nursery.cancel_scope.cancel()
    return figures


async def _interrupt() -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        await anext(aiter(signals))
        raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
