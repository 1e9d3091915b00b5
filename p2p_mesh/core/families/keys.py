"""The keys of a stage's file: those that count layers, those with one entry for each layer, and
those by which a family would do again at the entry of a stage what the first one has done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from p2p_mesh.core.families.family import Family
from p2p_mesh.core.families.layers import indexers, recurrent, windows
from p2p_mesh.core.families.recipe import Entry
from p2p_mesh.core.gguf import Header, Value

# One entry for each layer. An array is never taken for one by its length alone: a model of 4 layers
# has 4 `rope.dimension_sections` as well.
_PER_LAYER = (
    "feed_forward_length", "expert_feed_forward_length", "expert_used_count",
    "attention.head_count", "attention.head_count_kv", "attention.sliding_window_pattern",
    "attention.recurrent_layers", "swiglu_clamp_exp", "swiglu_clamp_shexp",
    "attention.indexer.types", "attention.compress_ratios", "attention.rope_pattern",
    "xielu.alpha_p", "xielu.alpha_n", "xielu.beta", "xielu.eps",
)  # fmt: skip

_SCALED = ("granite", "granitemoe", "granitehybrid", "granite_swa", "grok", "minicpm")
"""Families that multiply whatever they are fed, tokens or not, by `embedding_scale`."""

_ALL_F32 = 0
"""`general.file_type` of a file whose matrices are F32."""

_GLM_47_FLASH_VOCABULARY = 154_880
_LITE_VOCABULARY = 128_256
_SOFTMAX, _SIGMOID = 1, 2
_MULTIPLE_SECTIONS = ("glm4", "glm4moe")


def refusal(header: Header, total: int) -> str:
    """Why this model is not cut, though others of its family are; empty: it is."""
    architecture = header.architecture
    if architecture == "baichuan" and total in (32, 40):
        return f"the graph knows a model with {total} layers by their number alone"
    if architecture == "exaone4" and total == 64:
        return "the graph gives windows to a model of 64 layers only, and a stage has fewer"
    if architecture == "command-r" and total >= 64:
        return "the graph looks for norms of queries in files of 64 layers and more only"
    if architecture in _LARGE_GEMMA and total == _LARGE_GEMMA[architecture] and _differs(header):
        return (
            "the graph scales attention in another way where it counts the layers of the 27B model"
        )
    if architecture == "smallthinker" and total == 4:
        return "the graph turns positions in all layers of a model of 4"
    if architecture == "llama4" and header.metadata.get("llama4.attention.sliding_window") == 0:
        return "without windows its graph tells the last layer by its number"
    if architecture == "nanbeige" and header.number("num_loops", 1) > 1:
        return "its layers are run in loops, so that no cut separates them"
    if architecture == "kimi-k3" and 0 < header.number("attn_res.block_size") < total:
        return "its layers need what earlier blocks of layers have put aside"
    if architecture == "minicpm3" and not _is_f32(header):
        return "the graph scales by the number of layers, which only files in F32 can make up for"
    return _gate_refusal(header, total)


_LARGE_GEMMA = {"gemma2": 46, "gemma3": 62}


def _differs(header: Header) -> bool:
    """Whether the width of a head is not the model's width over its heads."""
    heads = max(1, header.number("attention.head_count", 1))
    share = header.number("embedding_length") // heads
    return header.number("attention.key_length", share) != share


def _is_f32(header: Header) -> bool:
    scaled = [one.type for one in header.tensors if one.name.endswith(_RESIDUAL)]
    if scaled:
        return not any(scaled)
    return header.metadata.get("general.file_type") == _ALL_F32


_RESIDUAL = ("attn_output.weight", "ffn_down.weight")
"""The matrices whose results minicpm3 scales by the number of layers before it adds them."""


def _gate_refusal(header: Header, total: int) -> str:
    if header.architecture not in ("deepseek2", "mistral4") or total not in (47, 48):
        return ""
    if header.number("expert_gating_func") or header.number("vocab_size"):
        return ""
    return "it does not say how its experts are weighed, and the graph tells it by the layers"


def counts(header: Header, family: Family) -> frozenset[int]:
    """How many blocks no file of a stage may have."""
    architecture = header.architecture
    if architecture == "command-r":
        return frozenset(range(64, 513))
    if architecture in _LARGE_GEMMA and _differs(header):
        return frozenset({_LARGE_GEMMA[architecture]})
    if architecture in ("deepseek2", "mistral4") and not _is_lite(header):
        return frozenset({26, 27})
    return family.counts


def _is_lite(header: Header) -> bool:
    """Whether the graph takes the whole model for one without compressed queries."""
    layers = header.number("block_count") - header.number("nextn_predict_layers")
    vocabulary = header.number("vocab_size", _LITE_VOCABULARY)
    return layers in (26, 27) or (layers == 48 and vocabulary == _LITE_VOCABULARY)


def period(header: Header, family: Family) -> int:
    if header.architecture in ("llama4", "ernie4_5-moe"):
        step = max(1, header.number("interleave_moe_layer_step", 1))
        return math.lcm(family.period, step)
    return family.period


def has_sections(header: Header) -> bool:
    """Whether positions are made of several (M-RoPE)."""
    found = header.metadata.get(f"{header.architecture}.rope.dimension_sections")
    return isinstance(found, tuple) and len(found) >= 2 and found[0] > 0 and found[1] > 0


def first_entry(header: Header, family: Family) -> Entry:
    if header.architecture in _MULTIPLE_SECTIONS and not has_sections(header):
        return "tokens"  # the graph aborts when it is fed rows
    return family.first


def later_entry(header: Header, family: Family) -> Entry:
    if header.architecture in _MULTIPLE_SECTIONS and not has_sections(header):
        return "inject"
    return family.later


def keys(
    header: Header, family: Family, total: int, blocks: Sequence[int], start: int
) -> Mapping[str, Value | None]:
    """The keys that differ from the model's own; None: left out."""
    found: dict[str, Value | None] = {"block_count": len(blocks)}
    if header.number("nextn_predict_layers"):
        found["nextn_predict_layers"] = 0
    found |= _without_images(header)
    found |= _per_layer(header, total, blocks)
    found |= _dense(header, blocks)
    found |= _kinds(header, family, total, blocks)
    found |= _heads(header, total, blocks)
    found |= _counted(header, total, start)
    if start > 0:
        found |= _entered(header, start)
    name = header.architecture
    return {f"{name}.{key}": value for key, value in found.items()}


def _per_layer(header: Header, total: int, blocks: Sequence[int]) -> dict[str, Value | None]:
    found: dict[str, Value | None] = {}
    for key in _PER_LAYER:
        value = header.metadata.get(f"{header.architecture}.{key}")
        if isinstance(value, tuple) and len(value) >= total:
            found[key] = tuple(value[block] for block in blocks)
    return found


def _without_images(header: Header) -> dict[str, Value | None]:
    """Only images bring more than one embedding for each token; for text zeros would be added."""
    found: dict[str, Value | None] = {}
    if f"{header.architecture}.deepstack_mapping" in header.metadata:
        found["deepstack_mapping"] = None
    if header.number("n_deepstack_layers"):
        found["n_deepstack_layers"] = 0
    return found


def _dense(header: Header, blocks: Sequence[int]) -> dict[str, Value | None]:
    """How many blocks, from the first one on, have no experts."""
    leading = header.number("leading_dense_block_count")
    if header.architecture == "lfm2" or not leading:
        return {}
    return {"leading_dense_block_count": sum(block < leading for block in blocks)}


def _kinds(
    header: Header, family: Family, total: int, blocks: Sequence[int]
) -> dict[str, Value | None]:
    """Periods of layers become lists: then no cut need respect them."""
    found: dict[str, Value | None] = {}
    if windowed := windows(header, family, total):
        found["attention.sliding_window_pattern"] = tuple(windowed[block] for block in blocks)
        if family.window_droppable and not any(windowed[block] for block in blocks):
            found["attention.sliding_window"] = 0
    if family.interval and (looped := recurrent(header, family, total)):
        found["attention.recurrent_layers"] = tuple(looped[block] for block in blocks)
    if full := indexers(header, total):
        found["attention.indexer.types"] = tuple(int(full[block]) for block in blocks)
    return found


def _heads(header: Header, total: int, blocks: Sequence[int]) -> dict[str, Value | None]:
    """The first entry sizes the heads of every layer, and is not there where it is 0."""
    told = header.metadata.get(f"{header.architecture}.attention.head_count")
    if not isinstance(told, tuple) or len(told) < total or not told[0]:
        return {}
    width = header.number("embedding_length") // told[0]
    found: dict[str, Value | None] = {
        key: width
        for key in ("attention.key_length", "attention.value_length")
        if f"{header.architecture}.{key}" not in header.metadata
    }
    if not told[blocks[0]]:
        heads = (told[0], *(told[block] for block in blocks[1:]))
        found["attention.head_count"] = heads
    return found


def _counted(header: Header, total: int, start: int) -> dict[str, Value | None]:
    """What the graph would work out from the number of layers."""
    found: dict[str, Value | None] = {}
    name = header.architecture
    if name == "minicpm" and f"{name}.residual_scale" not in header.metadata:
        found["residual_scale"] = 1.4 / math.sqrt(total)
    if name in ("deepseek2", "mistral4"):
        if _is_lite(header):
            found["attention.q_lora_rank"] = 0
        if not header.number("expert_gating_func"):
            flash = header.number("vocab_size") == _GLM_47_FLASH_VOCABULARY
            found["expert_gating_func"] = _SIGMOID if flash and total in (47, 48) else _SOFTMAX
    if name == "deepseek4" and header.number("hash_layer_count") > 0:
        found["hash_layer_count"] = header.number("hash_layer_count") if start == 0 else 0
    return found


def _entered(header: Header, start: int) -> dict[str, Value | None]:
    """What only the first stage does to what it is fed."""
    found: dict[str, Value | None] = {}
    if header.architecture in _SCALED and (
        header.architecture in ("grok", "minicpm")
        or f"{header.architecture}.embedding_scale" in header.metadata
    ):
        found["embedding_scale"] = 1.0
    if f"{header.architecture}.ple.layers" in header.metadata:
        found["ple.layers"] = None
    return found
