"""What passes between the node and the worker of a stage: the frames of a llama_cpp engine, and
some of its own.
"""

from __future__ import annotations

import msgspec
from meshnode_llama_cpp.frames import Ask, Cancel, Frames, Look, Report
from msgspec import Struct

from meshnode_skippy.wiring import Wiring
from p2p_mesh.core.records import KvType
from p2p_mesh.serve.backend import Wire


class OpenStage(Struct, frozen=True, tag="open_stage"):
    """Load this stage. Comes first, and once."""

    name: str
    path: str
    """The GGUF file of the stage,"""
    metadata: str
    """and one that has all keys of the model: the vocabulary, where the stage has none."""
    wiring: Wiring
    stage: int
    stages: int
    context: int
    slots: int
    threads: int
    layers: int = 1
    """Of this stage,"""
    total: int = 1
    """and of all together."""
    embeddings: str | None = None
    """A GGUF file with the table of embeddings, for a first stage that is fed its rows."""
    window: int = 0
    """Tokens of the sliding window that some layers of the model have; 0: none."""
    memory_limit: int | None = None
    kv_type: KvType = "f16"
    gpu_layers: int | None = None
    deterministic: bool = False
    speculation: bool = True
    draft: str | None = None
    wire: Wire = "f32"

    @property
    def is_first(self) -> bool:
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        return self.stage == self.stages - 1


class Restart(Struct, frozen=True, tag="restart"):
    """The ring is up, or up again: what was in flight is lost. For the first stage, which computes
    nothing before it; the others follow the epoch of what reaches them.
    """

    epoch: int


class Ping(Struct, frozen=True, tag="ping"):
    """Say that you live, between two batches."""


class Listen(Struct, frozen=True, tag="listen"):
    """Let the worker of the stage before reach this one, with that key."""

    key: bytes
    host: str = ""
    """The address to listen on; empty: all."""


class Dial(Struct, frozen=True, tag="dial"):
    """Reach the worker of the next stage; with no hosts, send through the node."""

    hosts: tuple[str, ...] = ()
    port: int = 0
    key: bytes = b""


class Pong(Struct, frozen=True, tag="pong"):
    """The worker lives."""


class Listening(Struct, frozen=True, tag="listening"):
    """On that port; 0: not at all."""

    port: int


class Dialled(Struct, frozen=True, tag="dialled"):
    reached: bool


class Unlinked(Struct, frozen=True, tag="unlinked"):
    """A direct link broke: frames may be lost."""

    reason: str


Command = OpenStage | Ask | Look | Cancel | Restart | Ping | Listen | Dial
StageReport = Report | Pong | Listening | Dialled | Unlinked


def commands() -> Frames[Command]:
    return Frames(msgspec.msgpack.Decoder(Command))


def reports() -> Frames[StageReport]:
    return Frames(msgspec.msgpack.Decoder(StageReport))
