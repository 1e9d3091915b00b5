"""A node as a plan of stages sees it: what it has, how far it is, and why it can take no stage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from p2p_mesh.core.costs import StageModel
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.records import Announcement, Resources, Role, ServedModel

BACKEND = "skippy"
HERE = "this node"

BANDWIDTH = 10e9
"""Bytes of weights in a second, of a node that measured none."""
SLOWEST = 1e6
"""Whatever it announces."""
ROUND_TRIP = 0.05
"""Seconds to a node and back, where no ping was answered yet."""


@dataclass(frozen=True, slots=True)
class Site:
    """A node, as the one that plans sees it."""

    peer: PeerId
    name: str = ""
    free: int = 0
    """Bytes of memory."""
    bandwidth: float = 0.0
    """Bytes of weights that it reads in a second; 0: not known."""
    round_trip: float | None = None
    """Seconds, from the node that plans; None: not measured yet."""
    is_here: bool = False
    """It is the node that plans."""
    role: Role = "member"
    backends: tuple[str, ...] = (BACKEND,)
    version: str = ""
    is_suspect: bool = False
    link: float = 0.0
    """Bytes in a second that its link carries; 0: not known."""

    @property
    def speed(self) -> float:
        """Bytes of weights in a second; never so little that a token would take for ever."""
        return max(self.bandwidth, SLOWEST) if self.bandwidth else BANDWIDTH

    @property
    def distance(self) -> float:
        """Seconds to it and back."""
        if self.is_here:
            return 0.0
        return ROUND_TRIP if self.round_trip is None else self.round_trip

    @property
    def label(self) -> str:
        return self.name or (HERE if self.is_here else self.peer)


def here(
    peer: PeerId,
    resources: Resources,
    *,
    name: str = "",
    role: Role = "member",
    backends: Iterable[str] = (BACKEND,),
) -> Site:
    """The node that plans."""
    return Site(
        peer,
        name,
        free=resources.memory_free,
        bandwidth=resources.bandwidth,
        round_trip=0.0,
        is_here=True,
        role=role,
        backends=tuple(backends),
    )


def site(
    peer: PeerId,
    announcement: Announcement,
    *,
    round_trip: float | None,
    model: StageModel | None = None,
    is_suspect: bool = False,
) -> Site:
    """Another node, as it announced itself. What it has measured of the model itself counts in
    place of its bandwidth.
    """
    about = announcement.resources
    return Site(
        peer,
        announcement.name,
        free=about.memory_free,
        bandwidth=_measured(announcement.models, model) or about.bandwidth,
        round_trip=round_trip,
        role=announcement.role,
        backends=announcement.backends,
        version=announcement.version,
        is_suspect=is_suspect,
    )


def _measured(served: Iterable[ServedModel], model: StageModel | None) -> float:
    """Bytes of weights that it reads in a second as it serves the model whole."""
    if model is None:
        return 0.0
    speeds = (
        one.speed
        for one in served
        if one.id == model.id and one.shard is None and " stages" not in one.numerics
    )
    return next(speeds, 0.0) * model.read(0, model.total)


def objection(
    site: Site, what: str, need: int, *, most_round_trip: float, backend: str = BACKEND
) -> str:
    """Why a node cannot hold what takes so many bytes, in words; empty: it can."""
    if site.role == "client":
        return "it is a client, which serves nothing"
    if site.is_suspect:
        return "it does not answer"
    if not site.backends and not site.is_here:
        return f"it serves nothing, or knows no stages: it runs meshnode {site.version or '?'}"
    if backend not in site.backends:
        return f"it has not the backend {backend}; it has: {', '.join(site.backends) or 'none'}"
    if site.distance > most_round_trip:
        return (
            f"its round trip of {site.distance * 1e3:.0f} ms is over the "
            f"{most_round_trip * 1e3:.0f} ms that are allowed"
        )
    return shortage(site, need, what)


def shortage(site: Site, need: int, what: str) -> str:
    """What its memory lacks; empty: nothing."""
    if need <= site.free:
        return ""
    return (
        f"{what} takes {gigabytes(need)} GB, and it has {gigabytes(site.free)} GB free: "
        f"{gigabytes(need - site.free)} GB are missing"
    )


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f}"
