"""What the proofs share: their options."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from benches.figures import Figure, conclude, run

Prove = Callable[[int], Awaitable[list[Figure]]]
"""How many of what is counted, to what came of it."""


def main(description: str | None, counted: str, usual: int, prove: Prove) -> int:
    """The exit code: 1 where a figure is not as wanted. Ctrl-C and SIGTERM end all that runs."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(f"--{counted}", type=_positive, default=usual, metavar="N", dest="count",
                        help=f"how many {counted} (default: {usual})")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    return conclude(run(partial(prove, given.count)), given.json)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number
