#!/usr/bin/env python
"""Certifies that models in stages answer as whole ones do: writes a tiny model of every
architecture that llama.cpp can save, cuts each at every boundary, and compares logits over a
prompt, decoding, two sequences and a step back; then the same with deeper ones and a prompt that is
longer than their sliding windows. A whole run writes docs/families.md. It takes about ten minutes
on 2 cores, and another ten, once, to build the program that writes the models.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "benches"))

from benches.figures import run, show
from certification.children import Terms, certify
from certification.fixtures import make
from certification.table import page
from certification.verdict import Verdict, figures, rows

PAGE = Path(__file__).parents[1] / "docs/families.md"
_DEPTHS = {"both": (False, True), "shallow": (False,), "deep": (True,)}
SHOWN = 6
"""Failures of a fixture that are told of; FILE has all."""


async def prove(given: argparse.Namespace) -> list[Verdict]:
    with tempfile.TemporaryDirectory(prefix="certify-") as name:
        folder = Path(name)
        fixtures = given.fixtures
        if fixtures is None:
            fixtures = folder / "fixtures"
            await make(fixtures, _say)
        files = [one for one in sorted(fixtures.glob("*.gguf")) if re.search(given.only, one.stem)]
        if not files:
            raise SystemExit(f"no fixture in {fixtures} is named {given.only!r}")
        wanted = [(one, deep) for deep in _DEPTHS[given.depth] for one in files]
        terms = Terms(folder, given.disturb, given.jobs)
        return await certify(wanted, terms, _Teller(len(wanted)).tell)


class _Teller:
    def __init__(self, total: int) -> None:
        self._total, self._count = total, 0

    def tell(self, verdict: Verdict) -> None:
        self._count += 1
        name = f"{verdict.fixture}{' (deep)' if verdict.deep else ''}"
        kind = "unmade" if verdict.unmade else verdict.kind
        _say(f"{self._count}/{self._total} {name}: {kind} {_detail(verdict)}")
        for cut, why in list((verdict.failures | verdict.crashes).items())[:SHOWN]:
            _say(f"    {cut}: {why}")


def _detail(verdict: Verdict) -> str:
    if verdict.kind == "refused":
        return verdict.why
    return f"{len(verdict.differences)} cuts {' '.join(sorted(verdict.entries))}".strip()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write(given: argparse.Namespace, verdicts: Sequence[Verdict], *, whole: bool) -> None:
    if given.json:
        found = [one.row() for one in figures(verdicts, whole=whole)]
        data = {"figures": found, "fixtures": rows(verdicts)}
        given.json.write_text(json.dumps(data, indent=2, ensure_ascii=False))
    if whole and not given.disturb:
        PAGE.write_text(page(verdicts))


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/certify", description=__doc__)
    add = parser.add_argument
    add("--only", default="", metavar="REGEX", help="fixtures with such a name (default: all)")
    add("--depth", choices=_DEPTHS, default="both",
        help="the fixtures as they are, repeated to 6 layers and more, or both")  # fmt: skip
    add("--fixtures", type=Path, metavar="DIR",
        help="where fixtures are already (default: they are made)")  # fmt: skip
    add("--disturb", type=float, default=0.0, metavar="PART",
        help="change every number between stages by such a part of it; 0.001 must be "
             "noticed everywhere (default: 0)")  # fmt: skip
    add("--jobs", type=int, default=2, metavar="N", help="fixtures at a time (default: 2)")
    add("--json", type=Path, metavar="FILE",
        help="also write the figures there, and what is behind them")  # fmt: skip
    given = parser.parse_args()
    verdicts = run(partial(prove, given))
    whole = not given.only and given.depth == "both"
    _write(given, verdicts, whole=whole)
    found = figures(verdicts, whole=whole)
    show(found)
    return 0 if all(one.holds for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
