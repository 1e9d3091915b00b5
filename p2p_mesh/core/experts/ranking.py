"""How much each expert of a model is used, as counted on texts: the ranking of its experts.

Two things are counted of each expert of each layer: the tokens that chose it, and its share of the
weights with which their answers were mixed, its *routing mass*. The second says what is lost when
the expert is missing. Rankings of one model add up. Whatever is read here may come from a stranger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from p2p_mesh.core.experts.layout import MAX_EXPERTS, MAX_LAYERS, Layout
from p2p_mesh.core.names import Digest
from p2p_mesh.core.records import Count, Record
from p2p_mesh.errors import ModelError

VERSION = 1
MAX_RANKING = 8 << 20
"""Bytes of the file."""

_SLACK = 1 + 1e-3
"""Sums of shares in float32 may come out above the count."""

Counts = Annotated[tuple[Count, ...], Meta(max_length=MAX_EXPERTS)]
Masses = Annotated[tuple[Annotated[float, Meta(ge=0, le=2**53)], ...], Meta(max_length=MAX_EXPERTS)]


class LayerRanking(Record, frozen=True, kw_only=True):
    """Of one layer, by expert."""

    layer: Annotated[int, Meta(ge=0, lt=MAX_LAYERS)]
    counts: Counts
    """Tokens that chose the expert."""
    masses: Masses
    """Its shares of their weights, added up. Those of one token, of the experts that it chose, are
    normalised to a sum of 1.
    """

    @property
    def is_counted(self) -> bool:
        """A layer that only predicts tokens ahead is not run, and has nothing."""
        return any(self.masses)

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the routing that goes to each expert; alike where nothing was counted."""
        total = math.fsum(self.masses)
        if not total:
            return (1 / len(self.masses),) * len(self.masses)
        return tuple(mass / total for mass in self.masses)


class Ranking(Record, frozen=True, kw_only=True):
    """What was counted of a model's experts."""

    model: Annotated[Digest, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    tokens: Count
    """That were read for it."""
    experts: Annotated[int, Meta(ge=2, le=MAX_EXPERTS)]
    used: Annotated[int, Meta(ge=1, le=MAX_EXPERTS)]
    layers: Annotated[tuple[LayerRanking, ...], Meta(min_length=1, max_length=MAX_LAYERS)]
    """Every layer that has experts, rising."""
    version: int = VERSION

    def shares(self, layer: int) -> tuple[float, ...]:
        """Of the experts of a layer, by its number; their sum is 1."""
        for one in self.layers:
            if one.layer == layer:
                return one.shares
        raise ModelError(f"the ranking has no layer {layer}")

    def kept(self, experts: Sequence[Sequence[int]]) -> tuple[float, ...]:
        """The routing mass that experts have of each layer, by the layers of the ranking."""
        return tuple(
            kept_of(layer.shares, chosen)
            for layer, chosen in zip(self.layers, experts, strict=True)
        )

    def mass(self, experts: Sequence[Sequence[int]]) -> float:
        """The routing mass of a model that has these experts of each layer."""
        return self.mean(self.kept(experts))

    def mean(self, kept: Sequence[float]) -> float:
        """The routing mass of a model, from that of its layers: their mean.

        The mean, since each layer mixes its experts' answers into what passes through, and what
        each adds to the loss is small and adds up. Their product would be how likely a token is
        routed as in the whole model in every layer, which is next to nothing in any deep model and
        says little of its answers; the least would be the verdict of one layer about all. Layers
        of which nothing was counted do not count.
        """
        counted = [
            one for one, layer in zip(kept, self.layers, strict=True) if layer.is_counted
        ] or kept
        return min(1.0, math.fsum(counted) / len(counted))


def kept_of(shares: Sequence[float], chosen: Sequence[int]) -> float:
    """The routing mass of those that are chosen of one layer."""
    if len(chosen) == len(shares):
        return 1.0
    return min(1.0, math.fsum(shares[one] for one in chosen))


def file_name(model: Digest) -> str:
    """Of the file that has a model's ranking."""
    return f"{model}.ranking"


def encode_ranking(ranking: Ranking) -> bytes:
    """The same bytes for the same ranking."""
    return msgspec.msgpack.encode(ranking, order="deterministic")


def decode_ranking(data: bytes) -> Ranking:
    """Raises ModelError, in words, for what is none."""
    if len(data) > MAX_RANKING:
        raise ModelError(f"the ranking has {len(data)} bytes; {MAX_RANKING} is the limit")
    try:
        ranking = msgspec.msgpack.decode(data, type=Ranking)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"it is no ranking: {error}") from error
    _check(ranking)
    return ranking


def _check(ranking: Ranking) -> None:
    if ranking.version != VERSION:
        raise ModelError(f"the ranking is of version {ranking.version}; {VERSION} can be read")
    numbers = [one.layer for one in ranking.layers]
    if sorted(set(numbers)) != numbers:
        raise ModelError("the layers of the ranking do not rise")
    if ranking.used > ranking.experts:
        raise ModelError(f"the ranking says {ranking.used} of {ranking.experts} experts are used")
    for one in ranking.layers:
        _check_layer(one, ranking)


def _check_layer(layer: LayerRanking, ranking: Ranking) -> None:
    if not len(layer.counts) == len(layer.masses) == ranking.experts:
        raise ModelError(f"the ranking's layer {layer.layer} is not of {ranking.experts} experts")
    for count, mass in zip(layer.counts, layer.masses, strict=True):
        if count > ranking.tokens or mass > count * _SLACK:
            raise ModelError(f"the ranking's layer {layer.layer} cannot be: {count} and {mass}")


def check_ranking(ranking: Ranking, of: Layout) -> None:
    """Raises ModelError where it is not a ranking of a model with these experts."""
    numbers = tuple(one.layer for one in ranking.layers)
    if (ranking.experts, ranking.used, numbers) != (of.experts, of.used, of.numbers):
        raise ModelError(
            f"the ranking is of {len(numbers)} layers with {ranking.experts} experts, "
            f"{ranking.used} of them used; the model has {len(of.numbers)} with {of.experts}, "
            f"{of.used} of them used: analyze the model again"
        )


def merge(one: Ranking, other: Ranking) -> Ranking:
    """Both together, as if counted at once. Raises ModelError for those of two models."""
    mine, others = _form(one), _form(other)
    if mine != others:
        raise ModelError("rankings of two models do not add up")
    layers = tuple(
        LayerRanking(
            layer=mine.layer,
            counts=tuple(map(sum, zip(mine.counts, others.counts, strict=True))),
            masses=tuple(map(sum, zip(mine.masses, others.masses, strict=True))),
        )
        for mine, others in zip(one.layers, other.layers, strict=True)
    )
    return msgspec.structs.replace(one, tokens=one.tokens + other.tokens, layers=layers)


def _form(ranking: Ranking) -> tuple[object, ...]:
    numbers = tuple(one.layer for one in ranking.layers)
    return ranking.model, ranking.experts, ranking.used, numbers


def uniform(model: Digest, of: Layout) -> Ranking:
    """Of a model of which nothing was counted: every expert is as good as any other."""
    none = LayerRanking(layer=0, counts=(0,) * of.experts, masses=(0.0,) * of.experts)
    layers = tuple(msgspec.structs.replace(none, layer=number) for number in of.numbers)
    return Ranking(model=model, tokens=0, experts=of.experts, used=of.used, layers=layers)
