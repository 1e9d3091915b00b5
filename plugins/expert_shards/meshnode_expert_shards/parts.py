"""What passes between a node and the engine of its shard: the frames of a llama_cpp engine, and who
has which experts, so that the engine can tell whose shard a prompt needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from meshnode_llama_cpp import frames
from msgspec import Struct

from meshnode_expert_shards.participants import Division
from p2p_mesh.core.names import PeerId


class Parts(Struct, frozen=True, tag="shard-parts"):
    """Who takes part now. Comes with the first command, and whenever that has changed."""

    own: int
    peers: tuple[str, ...]
    experts: tuple[tuple[bytes, ...], ...]
    """By peer, of each layer with experts: bit e is set where it has expert e."""


class Open(Struct, frozen=True, tag="shard-open"):
    """Load this shard. Comes first, and once."""

    open: frames.Open
    routers: str
    """The path of a file with those of the whole model."""
    parts: Parts


Command = Open | Parts | frames.Ask | frames.Look | frames.Cancel


def commands() -> frames.Frames[Command]:
    return frames.Frames(msgspec.msgpack.Decoder(Command))


def parts_of(division: Division, own: PeerId, experts: int) -> Parts:
    """`experts`: of each layer of the whole model."""
    number = division.number(own)
    assert number is not None, "only who has a part serves it"
    return Parts(
        number,
        tuple(one.peer for one in division.participants),
        tuple(tuple(mask(chosen, experts) for chosen in part.experts)
              for part in division.assignment.parts),
    )  # fmt: skip


def mask(chosen: Sequence[int], experts: int) -> bytes:
    return sum(1 << one for one in chosen).to_bytes(-(-experts // 8), "little")
