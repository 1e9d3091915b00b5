"""Fixtures with as many experts as prove something: those of llama.cpp have two, and use both."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

USED = 4
SPREAD = 0.1
"""Of what is near one, as scales, or near zero, as biases."""
_BY_EXPERT = re.compile(
    r"blk\.(\d+)\.(ffn_(?:gate|up|down|gate_up)_(?:ch)?exps\.(?:weight|bias|scale|input_scale)"
    r"|ffn_gate_inp\.(?:weight|bias)|exp_probs_b(?:_vl)?(?:\.bias)?)"
)


@dataclass(frozen=True, slots=True)
class Width:
    experts: int
    kept: int
    """By a shard with a part of them; as many of each group."""
    groups: int = 0
    groups_used: int = 0

    @property
    def keys(self) -> dict[str, int]:
        return {
            "expert_count": self.experts, "expert_used_count": USED,
            "expert_group_count": self.groups, "expert_group_used_count": self.groups_used,
        }  # fmt: skip

    def choose(self, seed: int) -> list[int]:
        """What such a shard keeps of a layer, rising."""
        random, groups = np.random.default_rng(seed), max(1, self.groups)
        each = self.experts // groups
        return sorted(
            group * each + int(one)
            for group in range(groups)
            for one in random.choice(each, self.kept // groups, replace=False)
        )

    def order(self, kept: Sequence[int]) -> list[int]:
        """All experts, with those of a shard first in each group."""
        each = self.experts // max(1, self.groups)
        return sorted(range(self.experts), key=lambda one: (one // each, one not in kept, one))


PLAIN = Width(32, 16)
GROUPED = Width(32, 16, 4, 2)
GROUPED_SOFTMAX = Width(64, 32, 2, 1)
"""A sum over all experts is taken in steps of up to 16: shards keep so many of each group."""


def by_expert(name: str) -> int | None:
    """The layer of a tensor that has a part for each expert; None for others."""
    found = _BY_EXPERT.fullmatch(name)
    return int(found[1]) if found else None


def widen(
    source: Path, target: Path, width: Width, orders: Mapping[int, Sequence[int]] | None = None
) -> None:
    """The same model with experts of its own kind, by chance. `orders`: by layer, in which order
    they stand, where it is not the first one.
    """
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    _write_keys(writer, reader, architecture, width)
    for tensor in reader.tensors:
        layer, data = by_expert(tensor.name), np.asarray(tensor.data)
        if layer is not None:
            data = _more(tensor.name, data, width.experts)
            data = data[list(orders[layer])] if orders else data
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_keys(
    writer: gguf.GGUFWriter, reader: gguf.GGUFReader, architecture: str, width: Width
) -> None:
    changed = {f"{architecture}.{key}": value for key, value in width.keys.items()}
    changed[f"{architecture}.expert_feed_forward_length"] = _inner(reader)
    for name, field in reader.fields.items():
        value = field.contents()
        is_empty = isinstance(value, list) and not value
        if name.startswith("GGUF.") or name in ("general.architecture", *changed) or is_empty:
            continue  # the writer puts its own, and refuses empty arrays
        writer.add_key_value(name, value, field.types[0], field.types[-1])
    for name, number in changed.items():
        writer.add_key_value(name, number, gguf.GGUFValueType.UINT32)


def _inner(reader: gguf.GGUFReader) -> int:
    """The width of an expert, which some families derive from how many are used."""
    found = (one for one in reader.tensors if one.name.endswith(".ffn_down_exps.weight"))
    return int(next(found).shape[0])


def _more(name: str, data: NDArray[Any], experts: int) -> Floats:
    if data.dtype != np.float32:
        raise ValueError(f"{name} is not in F32")
    random = np.random.default_rng(zlib.crc32(name.encode()))
    tiled = data[np.arange(experts) % len(data)]
    noise = random.standard_normal(tiled.shape, np.float32)
    if name.endswith("_exps.weight"):
        return tiled + noise * tiled.std()
    if name.endswith("scale"):
        return tiled * (1 + np.float32(SPREAD) * random.random(tiled.shape, np.float32))
    if name.endswith("ffn_gate_inp.weight"):
        return noise / np.float32(np.sqrt(tiled.shape[-1]))
    return noise * np.float32(SPREAD)
