"""The plan of a model over nodes: who holds which layers, and what to say of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from itertools import pairwise
from typing import Annotated

import msgspec
from msgspec import Meta

from p2p_mesh.core.costs import law
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.records import Count, Record, ShortText
from p2p_mesh.core.sites import HERE, ROUND_TRIP, Site, gigabytes
from p2p_mesh.errors import SettingsError

VERSION = 1

SAID = 20
"""Nodes of a list that words tell of."""


class Stage(Record, frozen=True, kw_only=True):
    """A node and its layers, half open."""

    node: Annotated[PeerId, Meta(min_length=1, max_length=128)]
    """Its peer id; in a plan that somebody wrote, also a name that no other node has."""
    layer_start: Count
    layer_end: Count


class Topology(Record, frozen=True, kw_only=True):
    """Which node computes which layers, in order."""

    model: ShortText
    manifest_sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    stages: Annotated[tuple[Stage, ...], Meta(min_length=1, max_length=256)]
    version: int = VERSION


class Wanted(Record, frozen=True, kw_only=True):
    """A plan that somebody asks for. None means: as the node's settings say."""

    model: ShortText
    split: bool | None = None
    flash: bool | None = None
    shards: bool | None = None
    context: Count | None = None
    slots: Count | None = None
    most_round_trip: float | None = None
    """Seconds."""
    topology: Topology | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A stage of a plan, and the node that holds it."""

    site: Site
    start: int
    end: int
    memory_bytes: int
    read_bytes: int
    """Of its weights, for one token."""

    @property
    def peer(self) -> PeerId:
        return self.site.peer

    @property
    def name(self) -> str:
        return self.site.label

    @property
    def is_here(self) -> bool:
        return self.site.is_here

    @property
    def round_trip(self) -> float | None:
        return self.site.round_trip

    @property
    def free_bytes(self) -> int:
        return self.site.free

    @property
    def seconds(self) -> float:
        """What it computes for one token."""
        return self.read_bytes / self.site.speed


@dataclass(frozen=True, slots=True)
class Excluded:
    """A node that can hold no stage, and the reason."""

    peer: PeerId
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Who holds what."""

    model: str
    manifest: str
    context: int
    slots: int
    row_bytes: int
    places: tuple[Place, ...]
    excluded: tuple[Excluded, ...] = ()
    spare: tuple[Site, ...] = ()
    """Nodes that could hold a stage, and need not."""

    @property
    def compute(self) -> float:
        """Seconds that all stages compute for one token."""
        return sum(one.seconds for one in self.places)

    @property
    def delay(self) -> float:
        """Seconds that one token is on its way."""
        return self.seconds - self.compute

    @property
    def seconds(self) -> float:
        """Of one token, in one stream, without speculation."""
        return law(self.compute, delays([one.site for one in self.places], self.row_bytes))

    @property
    def tokens_per_second(self) -> float:
        return 1 / self.seconds if self.seconds else 0.0

    def topology(self) -> Topology:
        """The plan as a file can hold it."""
        stages = tuple(
            Stage(node=one.peer, layer_start=one.start, layer_end=one.end) for one in self.places
        )
        return Topology(model=self.model, manifest_sha256=self.manifest, stages=stages)

    def with_place(self, stage: int, place: Place) -> Plan:
        """The plan with another node for that stage."""
        places = (*self.places[:stage], place, *self.places[stage + 1 :])
        return changed(self, places=places)

    def words(self) -> list[str]:
        """Who holds what, and why: one line each."""
        layers, stages = self.places[-1].end, len(self.places)
        return [
            f"{self.model}: {layers} layers in {stages} stage{'s' * (stages > 1)}, a context of "
            f"{self.context} tokens, {self.slots} at a time",
            *(_placed(number, one) for number, one in enumerate(self.places)),
            f"expected: {self.tokens_per_second:.1f} tokens/s for one answer, by "
            f"{self.compute * 1e3:.1f} ms of computing and {self.delay * 1e3:.1f} ms on the way",
            *_unused([one.label for one in self.spare]),
            *_left_out(self.excluded),
        ]


@dataclass(frozen=True, slots=True)
class Impossible:
    """There is no such plan: why, and what would help."""

    reason: str
    advice: str = ""
    missing: int = 0
    """Bytes of memory; 0: it is not memory that is missing."""
    excluded: tuple[Excluded, ...] = ()
    is_final: bool = False
    """It stays so whatever nodes come."""

    def __str__(self) -> str:
        return f"{self.reason} {self.advice}".strip()


def read_topology(data: bytes, name: str = "the plan of stages") -> Topology:
    """A plan that somebody wrote, in a file of that name. Raises SettingsError for what is none."""
    try:
        found = msgspec.json.decode(data, type=Topology)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{name} is no plan: {_readable(error)}; `meshnode plan MODEL --save FILE` writes one"
        ) from error
    if wrong := flaw(found):
        raise SettingsError(f"{name} is no plan: {wrong}")
    return found


_MISSING = re.compile(r"Object missing required field `(\w+)`")
_PLACE = re.compile(r"(.*) - at `\$\.?(.+)`", re.DOTALL)


def _readable(error: msgspec.DecodeError | UnicodeDecodeError) -> str:
    """What a plan lacks, by the name that it has in the file."""
    if not isinstance(error, msgspec.ValidationError):
        return f"it is no JSON: {error}"
    what, where = str(error), ""
    if found := _PLACE.fullmatch(what):
        what, where = found.groups()
    if found := _MISSING.fullmatch(what):
        return f"{where or 'it'} has no {found[1]}"
    if "matching regex" in what:
        what = "64 hex digits"
    return f"{where or 'it'} must be {what.replace('`', '').removeprefix('Expected ')}"


def flaw(topology: Topology) -> str:
    """What can be wrong with a plan whatever its model is; empty: nothing."""
    if topology.version != VERSION:
        return f"it is of version {topology.version}; {VERSION} can be read"
    at = 0
    for number, stage in enumerate(topology.stages):
        if stage.layer_start != at or stage.layer_end <= at:
            return (
                f"stage {number} has the layers {stage.layer_start} to {stage.layer_end}, half "
                f"open, and must begin at {at} and hold one layer at least"
            )
        at = stage.layer_end
    return ""


def layers(start: int, end: int) -> str:
    """A half open range of layers as people are told of it: from the first to the last."""
    return f"layers {start}-{end - 1}" if end - start > 1 else f"layer {start}"


def _placed(number: int, place: Place) -> str:
    site = place.site
    far = "" if site.label == HERE else f" ({HERE if site.is_here else _distance(site)})"
    guessed = "" if site.bandwidth else ", its speed a guess"
    return (
        f"stage {number}: {layers(place.start, place.end)} on {site.label}{far}: "
        f"{gigabytes(place.memory_bytes)} of {gigabytes(site.free)} GB, "
        f"{place.seconds * 1e3:.1f} ms a token{guessed}"
    )


def _unused(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = len(names) - SAID
    return [f"not needed: {', '.join(names[:SAID])}{f' and {more} more' if more > 0 else ''}"]


def _left_out(excluded: Sequence[Excluded]) -> list[str]:
    """Who can hold no stage and why, a line each; of many, some."""
    more = len(excluded) - SAID
    return [
        *(f"left out: {one.name}: {one.reason}" for one in excluded[:SAID]),
        *([f"left out: {more} more"] if more > 0 else []),
    ]


def _distance(site: Site) -> str:
    if site.round_trip is None:
        return f"round trip not measured, {ROUND_TRIP * 1e3:.0f} ms assumed"
    return f"round trip {site.round_trip * 1e3:.1f} ms"


def delays(sites: Sequence[Site], row_bytes: int) -> list[float]:
    """Seconds of each link of the ring, one way; the last carries tokens, which weigh nothing."""
    if len(sites) < 2:
        return []
    there = [_one_way(one, other) + _carrying(one, other, row_bytes)
             for one, other in pairwise(sites)]  # fmt: skip
    return [*there, _one_way(sites[-1], sites[0])]


def _one_way(one: Site, other: Site) -> float:
    """Between two others, nothing is measured: the farther of them says most."""
    return max(one.distance, other.distance) / 2


def _carrying(one: Site, other: Site, row_bytes: int) -> float:
    known = [site.link for site in (one, other) if site.link]
    return row_bytes / min(known) if known else 0.0
