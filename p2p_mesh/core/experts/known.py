"""What the file of an expert shard says of itself, in keys of its header, so that whoever finds it
knows whose experts it has, and which (specs/shards/README.md).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from p2p_mesh.core.experts.layout import MAX_EXPERTS, layout
from p2p_mesh.core.gguf import KEPT_ARRAY, Header, Value
from p2p_mesh.core.names import Digest
from p2p_mesh.core.records import Shard
from p2p_mesh.errors import ModelError

PREFIX = "meshnode.shard."
MODEL = f"{PREFIX}model"
MASS = f"{PREFIX}mass"
OF = f"{PREFIX}of"
EXPERTS = f"{PREFIX}experts"
PART = f"{PREFIX}part"
PARTS = f"{PREFIX}parts"

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_WORD = 32
"""Experts that one number of the mask names."""


@dataclass(frozen=True, slots=True)
class Known:
    """An expert shard, as its file describes it."""

    shard: Shard
    of: int
    """Experts that each layer of the whole model has."""
    experts: tuple[tuple[int, ...], ...]
    """Those it has, of each layer with experts, rising; by the whole model's numbers."""
    part: int
    parts: int


def keys(known: Known) -> Mapping[str, Value]:
    """The keys of its header. Raises ModelError for more experts than a header can name."""
    words = tuple(word for chosen in known.experts for word in _mask(chosen, known.of))
    if len(words) > KEPT_ARRAY:
        raise ModelError(
            f"{len(known.experts)} layers of {known.of} experts are more than the header of an "
            f"expert shard can name"
        )
    return {
        MODEL: known.shard.model,
        MASS: known.shard.mass,
        OF: known.of,
        EXPERTS: words,
        PART: known.part,
        PARTS: known.parts,
    }


def shard_of(header: Header) -> Known | None:
    """None: the file is no expert shard. Raises ModelError where it says so and cannot be."""
    if MODEL not in header.metadata:
        return None
    keep = header.number("expert_count")
    of = _number(header, OF, max(2, keep), MAX_EXPERTS)
    parts = _number(header, PARTS, 1, 2**31)
    experts = _experts(header, of)
    if any(len(chosen) != keep for chosen in experts):
        raise ModelError(f"its {EXPERTS} does not name {keep} experts of each layer")
    found = layout(header)  # the header of a package has no layers
    if found is not None and len(found.layers) != len(experts):
        raise ModelError(f"its {EXPERTS} is not of {len(found.layers)} layers")
    shard = Shard(model=_model(header), mass=_mass(header))
    return Known(shard, of, experts, _number(header, PART, 0, parts - 1), parts)


def _mask(chosen: Sequence[int], of: int) -> list[int]:
    """Bit e % 32 of word e // 32 stands for expert e."""
    words = [0] * -(-of // _WORD)
    for expert in chosen:
        words[expert // _WORD] |= 1 << expert % _WORD
    return words


def _experts(header: Header, of: int) -> tuple[tuple[int, ...], ...]:
    words = header.metadata.get(EXPERTS)
    width = -(-of // _WORD)
    if not isinstance(words, tuple) or not words or len(words) % width:
        raise ModelError(f"its {EXPERTS} is not of {width} words for each layer")
    if not all(type(word) is int and 0 <= word < 1 << _WORD for word in words):
        raise ModelError(f"its {EXPERTS} is no mask of bits")
    rows = (words[start : start + width] for start in range(0, len(words), width))
    return tuple(_unmask(row, of) for row in rows)


def _unmask(row: Sequence[int], of: int) -> tuple[int, ...]:
    bits = sum(word << _WORD * place for place, word in enumerate(row))
    if bits >> of:
        raise ModelError(f"its {EXPERTS} names experts beyond {of}")
    return tuple(expert for expert in range(of) if bits >> expert & 1)


def _model(header: Header) -> Digest:
    found = header.metadata[MODEL]
    if not isinstance(found, str) or not _DIGEST.match(found):
        raise ModelError(f"its {MODEL} is no digest")
    return Digest(found)


def _mass(header: Header) -> float:
    found = header.metadata.get(MASS)
    if not isinstance(found, float) or not (math.isfinite(found) and 0 <= found <= 1):
        raise ModelError(f"its {MASS} is not between 0 and 1")
    return found


def _number(header: Header, key: str, least: int, most: int) -> int:
    found = header.metadata.get(key)
    if type(found) is not int or not least <= found <= most:
        raise ModelError(f"its {key} is no number from {least} to {most}")
    return found
