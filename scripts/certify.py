#!/usr/bin/env python
"""Certifies that models in stages answer as whole ones do: writes a tiny model of every
architecture that llama.cpp can save, cuts each at every boundary, and compares logits over a
prompt, decoding, two sequences and a step back; then the same with deeper ones and a prompt that is
longer than their sliding windows. With --shards, it certifies expert shards instead: every model
that has experts gets 32 of them, and shards with all and with half of them are compared with it.
A whole run writes its part of docs/families.md. It takes about ten minutes on 2 cores, and another
ten, once, to build the program that writes the models.
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

from benches.figures import Figure, run, show
from certification import shardverdict, verdict
from certification.children import SHARDS, Terms, certify
from certification.fixtures import has_experts, make
from certification.shardtable import shard_page, shards_of, stages_of
from certification.shardverdict import ShardVerdict
from certification.table import page
from certification.verdict import Verdict

PAGE = Path(__file__).parents[1] / "docs/families.md"
_DEPTHS = {"both": (False, True), "shallow": (False,), "deep": (True,)}
SHOWN = 6
"""Failures of a fixture that are told of; FILE has all."""


Verdicts = list[Verdict] | list[ShardVerdict]


async def prove(given: argparse.Namespace) -> Verdicts:
    with tempfile.TemporaryDirectory(prefix="certify-") as name:
        folder = Path(name)
        fixtures = given.fixtures
        if fixtures is None:
            fixtures = folder / "fixtures"
            await make(fixtures, _say)
        files = [one for one in sorted(fixtures.glob("*.gguf")) if re.search(given.only, one.stem)]
        if given.shards:
            files = list(filter(has_experts, files))
        if not files:
            raise SystemExit(f"no fixture in {fixtures} is named {given.only!r}")
        return await (_shards if given.shards else _stages)(files, folder, given)


async def _stages(files: Sequence[Path], folder: Path, given: argparse.Namespace) -> list[Verdict]:
    wanted = [(one, Verdict(one.stem, deep=deep)) for deep in _DEPTHS[given.depth] for one in files]
    return await certify(wanted, Terms(folder, given.disturb, given.jobs), _Teller(wanted).tell)


async def _shards(
    files: Sequence[Path], folder: Path, given: argparse.Namespace
) -> list[ShardVerdict]:
    wanted = [(one, ShardVerdict(one.stem, grouped)) for grouped in (False, True) for one in files]
    terms = Terms(folder, given.disturb, given.jobs, SHARDS)
    return await certify(wanted, terms, _Teller(wanted).tell)


class _Teller:
    def __init__(self, wanted: Sequence[object]) -> None:
        self._total, self._count = len(wanted), 0

    def tell(self, one: Verdict | ShardVerdict) -> None:
        self._count += 1
        kind = "unmade" if one.unmade else one.kind
        _say(f"{self._count}/{self._total} {_title(one)}: {kind} {_detail(one)}")
        for what, why in list((one.failures | one.crashes).items())[:SHOWN]:
            _say(f"    {what}: {why}")


def _title(one: Verdict | ShardVerdict) -> str:
    if isinstance(one, ShardVerdict):
        return f"{one.fixture}{' (in groups)' if one.grouped else ''}"
    return f"{one.fixture}{' (deep)' if one.deep else ''}"


def _detail(one: Verdict | ShardVerdict) -> str:
    if one.kind == "refused":
        return one.why
    if isinstance(one, ShardVerdict):
        return "in place" if one.in_place else ""
    return f"{len(one.differences)} cuts {' '.join(sorted(one.entries))}".strip()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _written(given: argparse.Namespace, verdicts: Verdicts, *, whole: bool) -> list[Figure]:
    """The figures, which go to a file with what is behind them; a whole run writes the page."""
    module = shardverdict if given.shards else verdict
    found: list[Figure] = module.figures(verdicts, whole=whole)
    if given.json:
        data = {"figures": [one.row() for one in found], "fixtures": module.rows(verdicts)}
        given.json.write_text(json.dumps(data, indent=2, ensure_ascii=False))
    if whole and not given.disturb:
        former = PAGE.read_text()
        make_page = shard_page if given.shards else page
        told = make_page(verdicts)
        parts = (stages_of(former), told) if given.shards else (told, shards_of(former))
        PAGE.write_text("\n".join(filter(None, parts)))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/certify", description=__doc__)
    add = parser.add_argument
    add("--only", default="", metavar="REGEX", help="fixtures with such a name (default: all)")
    add("--shards", action="store_true", help="certify expert shards instead of stages")
    add("--depth", choices=_DEPTHS, default="both",
        help="the fixtures as they are, repeated to 6 layers and more, or both")  # fmt: skip
    add("--fixtures", type=Path, metavar="DIR",
        help="where fixtures are already (default: they are made)")  # fmt: skip
    add("--disturb", type=float, default=0.0, metavar="PART",
        help="change every number between stages, or one expert of each layer of a shard, by "
             "such a part of it; 0.001 must be noticed everywhere (default: 0)")  # fmt: skip
    add("--jobs", type=int, default=2, metavar="N", help="fixtures at a time (default: 2)")
    add("--json", type=Path, metavar="FILE",
        help="also write the figures there, and what is behind them")  # fmt: skip
    given = parser.parse_args()
    verdicts = run(partial(prove, given))
    found = _written(given, verdicts, whole=not given.only and given.depth == "both")
    show(found)
    return 0 if all(one.holds for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
