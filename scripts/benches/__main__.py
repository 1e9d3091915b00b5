"""`scripts/bench NAME [--json FILE]`: measures, prints a table, and says what holds."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import trio
from figures import Figure, show

NAMES = ("light",)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    figures: list[Figure] = trio.run(importlib.import_module(given.name).measure)
    show(figures)
    if given.json:
        given.json.write_text(json.dumps({"figures": [one.row() for one in figures]}, indent=2))
    return 0 if all(one.holds for one in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
