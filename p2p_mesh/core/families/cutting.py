"""Where a model can be cut into stages, and the recipe of each stage.

Between the layers of a stage and the ends of its file there may be fillers: layers of the model
which the graph needs and whose results are not used. Behind a stage that is not the last they cost
nothing, since nothing computes them; in front they are computed, and what comes out of the last of
them is replaced by the activations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from p2p_mesh.core.families import keys, tensors
from p2p_mesh.core.families.family import Family, family, refusal
from p2p_mesh.core.families.layers import Kind, kinds, selects_all, wanted
from p2p_mesh.core.families.recipe import Entry, Needs, Recipe
from p2p_mesh.core.gguf import Header
from p2p_mesh.errors import ModelError

MAX_LAYERS = 512
"""As many as llama.cpp takes."""

_NO_ROPE = 4
"""In llama4 every fourth layer does without positions, and none may lack one that does."""


@dataclass(frozen=True, slots=True)
class Cutting:
    header: Header
    family: Family
    total: int
    """Layers that can be shared out: without those that only predict tokens ahead."""
    kinds: tuple[Kind, ...]
    wanted: frozenset[Kind]
    """Kinds of layers that no stage may lack."""
    tied: bool | None
    """Whether the embedding table is the head as well; None: not known."""

    @property
    def architecture(self) -> str:
        return self.header.architecture

    def obstacle(self, start: int, end: int) -> str:
        """Why these layers cannot be a stage; empty: they can."""
        if not 0 <= start < end <= self.total:
            return f"there are no layers {start} to {end} of {self.total}"
        if (start, end) == (0, self.total):
            return ""
        try:
            blocks = self._blocks(start, end)
        except _Obstacle as obstacle:
            return str(obstacle)
        return _count_obstacle(self, blocks.all) or _start_obstacle(self, start, blocks.all[0])

    def recipe(self, start: int, end: int) -> Recipe:
        """Raises ModelError where there is an obstacle."""
        if why := self.obstacle(start, end):
            raise ModelError(f"layers {start} to {end} cannot be a stage: {why}")
        blocks = self._blocks(start, end)
        entry = self._entry(start, end, blocks)
        is_last = end == self.total
        needs_tokens = start > 0 and self._is_skipping
        has_vocabulary = is_last or entry == "tokens" or needs_tokens
        plan = tensors.Part(start, end, self.total, has_vocabulary, needs_tokens)
        return Recipe(
            start=start,
            end=end,
            total=self.total,
            blocks=blocks.all,
            entry=entry,
            entry_block=blocks.front - 1 if blocks.front else None,
            exit_block=None if is_last else blocks.front + end - start - 1,
            stops=not is_last,
            scale=self._scale(start, entry),
            needs_tokens=needs_tokens,
            has_vocabulary=has_vocabulary,
            metadata=keys.keys(self.header, self.family, self.total, blocks.all, start),
            shared=tensors.shared(plan, self.header),
            renamed=tensors.renamed(plan, self.header, self.family, blocks.all),
            left_out=tensors.left_out(plan, self.header, self.family, blocks.all),
        )

    def needs(self, start: int, end: int) -> Needs:
        recipe = self.recipe(start, end)
        is_last = end == self.total
        head = self.family.head
        table = is_last and (head == "tied" or (head == "optional" and self.tied is not False))
        return Needs(
            blocks=tuple(sorted(set(recipe.blocks))),
            embeddings=start == 0 or recipe.needs_tokens or table,
            output=is_last,
        )

    @property
    def _is_skipping(self) -> bool:
        """Every layer needs what the first one was fed: so that one is in front of each stage."""
        if self.architecture == "kimi-k3":
            return self.header.number("attn_res.block_size") > 0
        return self.architecture == "talkie"

    def _entry(self, start: int, end: int, blocks: _Blocks) -> Entry:
        if (start, end) == (0, self.total):
            return "tokens"
        if start == 0:
            return keys.first_entry(self.header, self.family)
        return "inject" if blocks.front else keys.later_entry(self.header, self.family)

    def _scale(self, start: int, entry: Entry) -> float:
        if start > 0 or entry != "rows" or not self.family.scales_tokens:
            return 1.0
        return math.sqrt(self.header.number("embedding_length"))

    def _blocks(self, start: int, end: int) -> _Blocks:
        if (start, end) == (0, self.total):
            return _Blocks(tuple(range(self.total)), 0)
        if keys.period(self.header, self.family) > 1:
            return _aligned(self, start, end)
        return _filled(self, start, end)


def study(header: Header, *, tied: bool | None = None) -> Cutting:
    """How a model is cut; its metadata is enough. `tied`: whether its head is its embedding table,
    where the header has no tensors to tell it.

    Raises ModelError: the family, or this model of it, is not cut.
    """
    architecture = header.architecture
    total = header.number("block_count") - max(0, header.number("nextn_predict_layers"))
    if not 0 < total <= MAX_LAYERS:
        raise ModelError(f"it claims {total} layers; there are 1 to {MAX_LAYERS}")
    why = refusal(architecture) or keys.refusal(header, total)
    if why:
        raise ModelError(f"models of the family {architecture!r} are not run in stages: {why}")
    found = family(architecture)
    of_layers = kinds(header, found, total)
    return Cutting(
        header, found, total, of_layers, wanted(header, found, of_layers), _is_tied(header, tied)
    )


def _is_tied(header: Header, told: bool | None) -> bool | None:
    names = {one.name for one in header.tensors}
    if tensors.HEAD in names:
        return False
    return True if tensors.TABLE in names else told


class _Obstacle(Exception):
    """These layers cannot be a stage; says why."""


@dataclass(frozen=True, slots=True)
class _Blocks:
    all: tuple[int, ...]
    front: int
    """How many of them are fillers in front."""


def _filled(cut: Cutting, start: int, end: int) -> _Blocks:
    """With one layer of each kind that is missing, behind where that can be."""
    front = [0] if start > 0 and cut._is_skipping else []
    front += _selector(cut, start, end)
    held = {cut.kinds[layer] for layer in (*front, *range(start, end))}
    behind: list[int] = []
    for kind in sorted(cut.wanted - held, key=str):
        if end < cut.total and (layer := _nearest(cut, kind, range(end, cut.total))) is not None:
            behind.append(layer)
        elif start > 0 and (layer := _nearest(cut, kind, range(start - 1, -1, -1))) is not None:
            front.append(layer)
        else:
            raise _Obstacle(f"the graph needs a layer of the kind {kind!r} beside them")
    front.sort()
    return _Blocks((*front, *range(start, end), *sorted(behind)), len(front))


def _nearest(cut: Cutting, kind: Kind, among: range) -> int | None:
    hashed = cut.header.number("hash_layer_count")  # these need the tokens
    return next((one for one in among if cut.kinds[one] == kind and one >= hashed), None)


def _selector(cut: Cutting, start: int, end: int) -> list[int]:
    """A layer with an indexer, where the first that attends has none of its own."""
    attending = [layer for layer in range(start, end) if cut.kinds[layer] in ("whole", "shared")]
    first_is_shared = bool(attending) and cut.kinds[attending[0]] == "shared"
    if not first_is_shared and not (cut.architecture == "hy_v4" and cut.kinds[start] == "shared"):
        return []
    if not selects_all(cut.header):
        raise _Obstacle(
            f"layer {start} uses what the indexer of an earlier layer has selected; cut before a "
            "layer with an indexer of its own"
        )
    found = _nearest(cut, "whole", range(start - 1, -1, -1))
    if found is None:
        raise _Obstacle("no layer before them has an indexer")
    return [found]


def _aligned(cut: Cutting, start: int, end: int) -> _Blocks:
    """With the neighbours that bring each layer to its place in the period."""
    period = keys.period(cut.header, cut.family)
    front = list(range(start - start % period, start))
    behind: list[int] = []

    def is_whole() -> bool:
        blocks = (*front, *range(start, end), *behind)
        is_long = cut.architecture != "llama4" or len(blocks) >= _NO_ROPE
        return is_long and cut.wanted <= {cut.kinds[layer] for layer in blocks}

    while not is_whole() and end + len(behind) < cut.total:
        behind.append(end + len(behind))
    if not is_whole() and start - start % period >= period:
        front = [*range(start - start % period - period, start - start % period), *front]
        behind = []
    if not is_whole():
        raise _Obstacle("the graph needs layers of a kind that is not among them")
    if len(front) + end - start + len(behind) in cut.family.counts and end < cut.total:
        behind.append(end + len(behind))  # another count, and nobody computes it
    return _Blocks((*front, *range(start, end), *behind), len(front))


def _count_obstacle(cut: Cutting, blocks: tuple[int, ...]) -> str:
    if len(blocks) in keys.counts(cut.header, cut.family):
        return f"the graph takes a file of {len(blocks)} layers for another model"
    return ""


def _start_obstacle(cut: Cutting, start: int, first: int) -> str:
    hashed = cut.header.number("hash_layer_count")
    if 0 < start < hashed:
        return f"the first {hashed} layers choose their experts by the tokens; keep them together"
    places = cut.header.metadata.get(f"{cut.architecture}.ple.layers")
    if isinstance(places, tuple) and start > 0 and any(place >= start for place in places):
        return "its layers that look tokens up must be in the first stage"
    return _heads_obstacle(cut, first)


def _heads_obstacle(cut: Cutting, first: int) -> str:
    """The graph takes the size of all heads from the first block of a file."""
    heads = cut.header.numbers("attention.head_count", cut.total)
    if heads[0] == 0 and heads[first] > 0:
        return "a stage must begin with a layer without attention, as the model does"
    if cut.architecture == "deci" and heads[0] > 0 and heads[first] == 0:
        return "a stage must begin with a layer that has attention, as the model does"
    return ""
