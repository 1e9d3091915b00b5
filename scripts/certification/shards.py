"""Certifies the expert shards of one model: `python shards.py JOB`, a process of its own, since
llama.cpp aborts on what it cannot compute. Writes a line of JSON for everything that it begins and
that it finds.

A shard with all experts must equal the whole model, and one with half of them the whole model whose
routers do not see the others, to the last bit. Where a router sums over all experts, the order of
that sum counts: if the two are not equal as they stand, the whole model is written again with the
shard's experts first.
"""

from __future__ import annotations

import json
import mmap
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from certification.masking import MaskedContext
from certification.players import Whole
from certification.story import SHORT, Logits, Rules, difference, tell
from certification.widening import GROUPED, GROUPED_SOFTMAX, PLAIN, Width, widen
from meshnode_expert_shards.composing import Source, compose
from meshnode_expert_shards.counting import CountingContext
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.library import start
from meshnode_llama_cpp.model import Model

from p2p_mesh.core.experts.layout import Layout, layout
from p2p_mesh.core.experts.shard import obstacle, shard_recipe
from p2p_mesh.core.gguf import Header, read_header
from p2p_mesh.errors import ModelError

Kept = Mapping[int, Sequence[int]]
"""Experts by layer, rising."""

_NOBODYS = "0" * 64
_SIGMOID = 2  # LLAMA_EXPERT_GATING_FUNC_TYPE_*
_LATER = 16
"""Tokens of a story that come after its prompt, at most."""


@dataclass(frozen=True, slots=True)
class Job:
    fixture: str
    folder: str
    """For what is written."""
    grouped: bool
    disturb: float
    """By which part one expert of each layer is changed, in every shard."""


def work(job: Job) -> Iterator[dict[str, Any]]:
    """Whatever is begun is told before, so that a process that dies tells at what."""
    fixture, folder = Path(job.fixture), Path(job.folder)
    wide = folder / f"{fixture.stem}-wide.gguf"
    width = _width(read(fixture).header, grouped=job.grouped)
    yield {"begin": "widening"}
    widen(fixture, wide, width)
    yield {"begin": "refusing"}
    source = read(wide)
    if why := obstacle(source.header, width.kept):
        wide.unlink()
        yield {"refused": why}
        return
    found = layout(source.header)
    assert found is not None
    yield {"experts": width.experts, "kept": width.kept}
    yield from _proofs(_Workshop(job, width, wide, source, found))
    wide.unlink()
    yield {"end": True}


@dataclass(frozen=True, slots=True)
class _Workshop:
    job: Job
    width: Width
    wide: Path
    source: Source
    layout: Layout

    @property
    def kept(self) -> Kept:
        return {layer: self.width.choose(layer) for layer in self.layout.numbers}

    def shard(self, kept: Kept) -> Path:
        target = self.wide.with_suffix(".shard.gguf")
        experts = [kept[layer] for layer in self.layout.numbers]
        recipe = shard_recipe(self.source.header, self.layout, experts, model=_NOBODYS, mass=1.0)
        compose(recipe, keys=self.source, sources=[self.source], target=target)
        if self.job.disturb:
            disturb(target, favourites(target), self.job.disturb)
        return target

    def reordered(self, kept: Kept) -> Path:
        target = self.wide.with_suffix(".reordered.gguf")
        orders = {layer: self.width.order(ones) for layer, ones in kept.items()}
        widen(Path(self.job.fixture), target, self.width, orders)
        return target


def _proofs(shop: _Workshop) -> Iterator[dict[str, Any]]:
    yield {"begin": "whole"}
    whole = Whole(shop.wide)
    rules = whole.rules(SHORT + _LATER)
    right = _told(whole, rules)
    everything = {layer: list(range(shop.width.experts)) for layer in shop.layout.numbers}
    yield {"begin": "all"}
    yield {"proof": "all"} | _compared(lambda: _of_file(shop.shard(everything), rules), right)
    yield {"begin": "masked"}
    kept = shop.kept
    masked = _masked(shop.wide, rules, _absent(shop.width, kept), shop.width)
    if difference(masked, right) == 0:
        yield {"proof": "half", "difference": 1e30, "why": "the mask changes nothing"}
        return
    yield {"begin": "half"}
    half: list[Logits] = []
    found = _compared(lambda: _of_file(shop.shard(kept), rules, half), masked)
    yield {"in_place": not found["difference"]}
    if half and found["difference"] and not found["why"]:
        yield {"begin": "reordered"}
        path = shop.reordered(kept)
        absent = {layer: _behind(shop.width, ones) for layer, ones in kept.items()}
        masked = _masked(path, rules, absent, shop.width)
        path.unlink()
        found = _compared(lambda: half, masked)
    yield {"proof": "half"} | found


def _absent(width: Width, kept: Kept) -> Kept:
    return {layer: sorted(set(range(width.experts)) - set(ones)) for layer, ones in kept.items()}


def _behind(width: Width, kept: Sequence[int]) -> list[int]:
    """Where the absent ones stand, once those of a shard stand first."""
    return [at for at, one in enumerate(width.order(kept)) if one not in kept]


def _width(header: Header, *, grouped: bool) -> Width:
    if not grouped:
        return PLAIN
    sums = header.number("expert_gating_func") != _SIGMOID
    return GROUPED_SOFTMAX if sums else GROUPED


def _told(player: Whole, rules: Rules) -> list[Logits]:
    return tell(player, rules, vocabulary=player.vocabulary, length=SHORT)


def _of_file(path: Path, rules: Rules, kept: list[Logits] | None = None) -> list[Logits]:
    try:
        told = _told(Whole(path), rules)
    finally:
        path.unlink()  # it is mapped
    if kept is not None:
        kept += told
    return told


def _masked(path: Path, rules: Rules, absent: Kept, width: Width) -> list[Logits]:
    whole = Whole(path, lambda model, plan: MaskedContext(model, plan, absent, width.experts))
    return _told(whole, rules)


def _compared(play: Callable[[], list[Logits]], right: Sequence[Logits]) -> dict[str, Any]:
    try:
        found, why = difference(play(), right), ""
    except (ModelError, RuntimeError) as error:
        found, why = float("inf"), f"{type(error).__name__}: {error}"
    if found == float("inf") and not why:
        why = "the logits are no numbers, or not as many"
    return {"difference": min(found, 1e30), "why": why}


def read(path: Path) -> Source:
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return Source(read_header(data, len(data)), lambda at, size: data[at : at + size])


class _Counter(CountingContext):
    takes_forgetful = True


def favourites(path: Path) -> dict[int, int]:
    """The expert of each layer that the story goes through most often."""
    header, made = read(path).header, list[_Counter]()

    def make(model: Model, plan: Plan) -> Context:
        experts = header.number("expert_count")
        made.append(_Counter(model, plan, experts=experts, family=header.architecture))
        return made[0]

    player = Whole(path, make)
    _told(player, player.rules(SHORT + _LATER))
    found = made[0].counting.rankings()
    return {one.layer: int(np.argmax(one.counts)) for one in found if one.is_counted}


def disturb(path: Path, experts: Mapping[int, int], part: float) -> None:
    """Changes the weights of one expert of each layer."""
    found = layout(read(path).header)
    assert found is not None
    with path.open("r+b") as file:
        for offset, size in (found.slices(*one)[0] for one in experts.items()):
            file.seek(offset)
            weights = np.frombuffer(file.read(size), np.float32)
            file.seek(offset)
            file.write((weights * np.float32(1 + part)).tobytes())


def main() -> None:
    start()
    for line in work(Job(**json.loads(sys.argv[1]))):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
