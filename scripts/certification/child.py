"""Certifies one model: `python child.py JOB`, a process of its own, since llama.cpp aborts on what
it cannot compute. Writes a line of JSON for everything that it begins and that it finds.
"""

from __future__ import annotations

import json
import mmap
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from certification.cuts import Cut, cuts, obstacle, ranges
from certification.players import Stages, Whole, Workshop
from certification.story import LONG, SHORT, Logits, difference, tell
from meshnode_llama_cpp.library import start
from meshnode_skippy.composing import repeat

from p2p_mesh.core.families import study
from p2p_mesh.core.families.cutting import Cutting
from p2p_mesh.core.gguf import read_header
from p2p_mesh.errors import ModelError

DEEP = 6
"""Layers that a deep fixture has at least."""
_LATER = 16
"""Tokens of a story that come after its prompt, at most."""


@dataclass(frozen=True, slots=True)
class Job:
    fixture: str
    folder: str
    """For what is written."""
    deep: bool
    disturb: float
    done: tuple[Cut, ...]
    """Cuts of which all is known, from a process that did not survive the next one."""


def work(job: Job) -> Iterator[dict[str, Any]]:
    """Whatever is begun is told before, so that a process that dies tells at what."""
    fixture, folder = Path(job.fixture), Path(job.folder)
    cutting = _study(fixture)
    if isinstance(cutting, str):
        yield {"refused": cutting}
        return
    if job.deep:
        deep = folder / f"{fixture.stem}-deep.gguf"
        yield {"begin": "deepening"}
        if not deep.exists():
            repeat(fixture, deep, -(-DEEP // cutting.total))
        fixture, cutting = deep, _study(deep)
        if isinstance(cutting, str):
            yield {"refused": cutting}
            return
    barred = {cut: why for cut in cuts(cutting.total) if (why := obstacle(cutting, cut))}
    yield {"layers": cutting.total, "barred": [[cut, why] for cut, why in barred.items()]}
    yield {"begin": "whole"}
    whole = Whole(fixture)
    length = LONG if job.deep else SHORT
    rules = whole.rules(length + _LATER)
    right = tell(whole, rules, vocabulary=whole.vocabulary, length=length)
    yield {"whole": {"remembers": rules.remembers, "trims": rules.trims}}
    workshop = Workshop(fixture, folder)
    for cut in cuts(cutting.total):
        if cut in barred or cut in job.done:
            continue
        yield {"begin": cut}
        recipes = [cutting.recipe(*one) for one in ranges(cut, cutting.total)]
        try:
            stages = Stages(workshop, recipes, job.disturb)
            told = tell(stages, rules, vocabulary=whole.vocabulary, length=length)
            found = difference(told, right)
            why = "" if found != float("inf") else _strange(told, right)
        except (ModelError, RuntimeError) as error:
            found, why = float("inf"), f"{type(error).__name__}: {error}"
        fillers = sum(len(one.blocks) - (one.end - one.start) for one in recipes)
        entries = [one.entry for one in recipes]
        yield {"cut": cut, "difference": min(found, 1e30), "why": why, "entries": entries,
               "fillers": fillers}  # fmt: skip
    if job.deep:
        fixture.unlink()
    yield {"end": True}


def _strange(told: Sequence[Logits], right: Sequence[Logits]) -> str:
    if not all(bool((one == one).all()) for one in right):
        return "the whole model's logits are no numbers"
    return "the logits are no numbers, or not as many"


def _study(path: Path) -> Cutting | str:
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return study(read_header(data, len(data)))
    except ModelError as error:
        return str(error)


def main() -> None:
    given = json.loads(sys.argv[1])
    given["done"] = tuple(tuple(cut) for cut in given["done"])
    start()
    for line in work(Job(**given)):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
