"""`scripts/bench NAME [--quick] [--json FILE]`: measures, prints a table, says what holds."""

from __future__ import annotations

import argparse
import importlib
import sys
from functools import partial
from pathlib import Path

from figures import conclude, run

NAMES = ("light", "engine", "mesh", "idle", "artifacts", "split", "splitproof", "flash", "experts")


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
    return conclude(run(measure), given.json)


if __name__ == "__main__":
    sys.exit(main())
