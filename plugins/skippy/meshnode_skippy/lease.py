"""The lease of a stage: what its coordinator and its holder say to one another, and when
(specs/stage/README.md). Pure.

    prepare → prepared → load → loaded → commit → committed → commit …

Each order is answered before the next one is given. `progress` and `broken` come unasked, `renew`
goes unanswered. Either side ends the lease by ending the stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from msgspec import Meta

from p2p_mesh.core.names import PeerId
from p2p_mesh.core.package import PackageRef
from p2p_mesh.core.records import KvType, ShortText
from p2p_mesh.core.stages import MOST_STAGES
from p2p_mesh.core.wire import ErrorMessage, Message, decode
from p2p_mesh.errors import MeshError, RemoteError
from p2p_mesh.serve.backend import Wire

STAGE = "plugin/skippy/stage"
ACTIVATIONS = "plugin/skippy/activations"

RENEW = 5.0
"""Seconds between two signs of life of a coordinator,"""
SILENCE = 30.0
"""and seconds of silence after which its lease is over."""
IDLE = 900.0
"""Seconds that a stage which is prepared waits to be loaded, and a loaded one for its ring."""
STALLED = 120.0
"""Seconds without progress after which a coordinator gives a stage up."""
JOIN = 10.0
"""Seconds in which a link between two stages must be there."""

LEASES = 32
"""That a node has at a time,"""
LEASES_OF_A_PEER = 8
"""and of those, of one coordinator."""

MOST_HOSTS = 3
"""At which the worker of the next stage is tried."""

MAX_LAYERS = 4096
_LONGEST = 2**31 - 1

Token = Annotated[bytes, Meta(min_length=16, max_length=16)]
Epoch = Annotated[int, Meta(ge=1, le=2**31 - 1)]
StageNumber = Annotated[int, Meta(ge=0, lt=MOST_STAGES)]
Layers = Annotated[int, Meta(ge=0, le=MAX_LAYERS)]
Share = Annotated[float, Meta(ge=0, le=1)]
Peer = Annotated[PeerId, Meta(min_length=1, max_length=128)]


class Prepare(Message, frozen=True, kw_only=True, tag="prepare"):
    """Get ready to hold these layers. Comes first, and once."""

    run: Token
    """Which ring it is for."""
    secret: Token
    """What the stage before will show."""
    stage: StageNumber
    stages: Annotated[int, Meta(ge=1, le=MOST_STAGES)]
    model: ShortText
    package: PackageRef
    start: Layers
    end: Layers
    context: Annotated[int, Meta(ge=1, le=_LONGEST)]
    slots: Annotated[int, Meta(ge=1, le=256)]
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    """At most; 0: as the holder thinks best."""
    kv_type: KvType = "f16"
    wire: Wire = "f32"
    deterministic: bool = False
    speculation: bool = True


class LoadStage(Message, frozen=True, tag="load"):
    """Load it."""


class Commit(Message, frozen=True, kw_only=True, tag="commit"):
    """Reach the next stage, for this epoch of the ring; what reached it before is over."""

    epoch: Epoch
    next: Peer
    stage: StageNumber
    secret: Token


class Renew(Message, frozen=True, tag="renew"):
    """The coordinator lives, and wants the lease."""


class Progress(Message, frozen=True, kw_only=True, tag="progress"):
    """How far the order that was given is done."""

    share: Share


class Prepared(Message, frozen=True, kw_only=True, tag="prepared"):
    """All parts are here, and memory is held for them."""

    memory_bytes: Annotated[int, Meta(ge=0, le=2**53)] = 0


class Loaded(Message, frozen=True, kw_only=True, tag="loaded"):
    numerics: ShortText = ""
    device: ShortText = ""
    notes: Annotated[tuple[Annotated[str, Meta(max_length=1024)], ...], Meta(max_length=16)] = ()


class Committed(Message, frozen=True, kw_only=True, tag="committed"):
    """The next stage was reached."""

    epoch: Epoch


class Broken(Message, frozen=True, kw_only=True, tag="broken"):
    """A link of the stage has ended, or could not be made."""

    epoch: Epoch
    reason: Annotated[str, Meta(max_length=1024)] = ""


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """The first frame of a link: which one it is."""

    run: Token
    stage: StageNumber
    """That is spoken to."""
    secret: Token
    epoch: Epoch


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    """The link is taken; frames of the ring follow, to whoever said it."""

    port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    """Where its worker can be reached without the nodes between; 0: nowhere."""
    key: Annotated[bytes, Meta(max_length=32)] = b""


Order = LoadStage | Commit
Report = Progress | Prepared | Loaded | Committed | Broken
Phase = Literal["preparing", "prepared", "loading", "loaded", "committing", "running"]


class Terms:
    """How far a lease has come. Both sides keep it, each from what it hears."""

    def __init__(self) -> None:
        self.phase: Phase = "preparing"
        self.epoch = 0
        """Of the newest commit."""
        self.share = 0.0
        self.loaded = Loaded()
        self.memory_bytes = 0

    def order(self, order: Order) -> None:
        """An order is given. Raises RemoteError where it is not its time."""
        match order:
            case LoadStage() if self.phase == "prepared":
                self.phase = "loading"
            case Commit(epoch=epoch) if self.phase in ("loaded", "committing", "running"):
                if epoch <= self.epoch:
                    raise RemoteError(f"epoch {epoch} is over; the last one was {self.epoch}")
                self.phase, self.epoch = "committing", epoch
            case _:
                raise RemoteError(f"an order out of turn, while the stage was {self.phase}")
        self.share = 0.0

    def report(self, report: Report) -> None:
        """The holder reports. Raises RemoteError where it is not its time."""
        match report:
            case Progress(share=share):
                self.share = max(self.share, share)
            case Prepared(memory_bytes=memory) if self.phase == "preparing":
                self.phase, self.memory_bytes = "prepared", memory
            case Loaded() if self.phase == "loading":
                self.phase, self.loaded = "loaded", report
            case Committed(epoch=epoch):
                if epoch == self.epoch:  # else of a ring that was given up meanwhile
                    self.phase = "running"
            case Broken():
                pass
            case _:
                raise RemoteError(f"a report out of turn, while the stage was {self.phase}")


def read_prepare(frame: bytes) -> Prepare:
    """Raises RemoteError for what no stage could be."""
    asked: Prepare = decode(frame, Prepare)
    if not asked.start < asked.end:
        raise RemoteError(f"layers {asked.start} to {asked.end} are none")
    if asked.stage >= asked.stages:
        raise RemoteError(f"stage {asked.stage} of {asked.stages}")
    if (asked.stage == 0) != (asked.start == 0):
        raise RemoteError(f"stage {asked.stage} cannot begin with layer {asked.start}")
    if asked.context * asked.slots > _LONGEST:
        raise RemoteError(f"{asked.slots} slots of {asked.context} tokens are too many")
    return asked


def read_order(frame: bytes) -> Order | Renew:
    order: Order | Renew = decode(frame, LoadStage | Commit | Renew)
    return order


def read_report(frame: bytes) -> Report:
    """Raises what the holder says instead of a report."""
    report: Report | ErrorMessage = decode(
        frame, Progress | Prepared | Loaded | Committed | Broken | ErrorMessage
    )
    if isinstance(report, ErrorMessage):
        raise report.error()
    return report


def read_welcome(frame: bytes) -> Welcome:
    """Raises what the next stage says instead."""
    answer: Welcome | ErrorMessage = decode(frame, Welcome | ErrorMessage)
    if isinstance(answer, ErrorMessage):
        raise answer.error()
    return answer


def hosts(addresses: Iterable[str]) -> tuple[str, ...]:
    """Where a node's worker may be reached, by the multiaddrs that the node announces."""
    parts = (address.split("/") for address in addresses)
    found = (one[2] for one in parts if len(one) > 2 and one[1] in ("ip4", "ip6"))
    return tuple(dict.fromkeys(found))[:MOST_HOSTS]


def words(error: MeshError) -> str:
    """As much of an error as a `broken` carries."""
    return str(error)[:1024]
