"""What passes between the command that measures a model and the process that does it: records as
an engine of llama_cpp has them.
"""

from __future__ import annotations

import msgspec
from meshnode_llama_cpp.frames import Failed, Frames, Progress, Ready
from msgspec import Struct

from meshnode_expert_shards.prompts import Asked
from p2p_mesh.core.experts.ranking import LayerRanking


class Count(Struct, frozen=True, kw_only=True, tag="count"):
    """Load this model, have it read these prompts and go on writing, and count its routers'
    choices. Comes once.
    """

    name: str
    path: str
    family: str
    experts: int
    prompts: tuple[Asked, ...]
    tokens: int
    """Of prompts and of what is written after them, together."""
    context: int
    """Tokens of one prompt with what is written after it, at most."""
    threads: int
    memory_limit: int | None = None
    is_larger: bool = False
    """The model is larger than memory: its experts are read ahead, as soon as they are chosen."""


class Counted(Struct, frozen=True, kw_only=True, tag="counted"):
    """What came of it; the process ends."""

    read: int
    written: int
    layers: tuple[LayerRanking, ...]
    """Those that were computed, rising."""


Report = Progress | Ready | Failed | Counted
"""Once it is ready, progress is of the counting."""


def commands() -> Frames[Count]:
    return Frames(msgspec.msgpack.Decoder(Count))


def reports() -> Frames[Report]:
    return Frames(msgspec.msgpack.Decoder(Report))
