"""How much memory a model needs beside its weights.

The rules are llama.cpp's (0.5.0): what each architecture keeps of a token, and what of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2p_mesh.core.gguf import Header

_F16, _F32 = 2, 4
_MOST_LAYERS = 4096

_FORGETFUL = frozenset({
    "bert", "dream", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llada",
    "llada-moe", "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe", "rnd1",
})  # fmt: skip
"""Architectures that read everything at once, and keep nothing."""
_RECURRENT = frozenset({"arwkv7", "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7"})
_INTERVALS = frozenset({"qwen35", "qwen35moe", "qwen3next"})
"""Recurrent but for each fourth layer, or what `full_attention_interval` says."""


_FULL_EVERY = {"cohere2": 4, "gemma2": 2, "gemma3": 6, "gpt-oss": 2}
"""Architectures whose header may leave out which layers slide: each n-th sees everything."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What one layer keeps, in bytes: of a token, at f16, and of a sequence, however long."""

    token: int = 0
    window: int = 0
    """Tokens that it sees; 0: all."""
    sequence: int = 0


def kept(header: Header) -> tuple[Kept, ...]:
    """What each layer keeps."""
    layers = max(0, min(header.number("block_count"), _MOST_LAYERS))
    if header.architecture in _FORGETFUL:
        return (Kept(),) * layers
    heads, width = _heads(header, layers), _token_width(header, layers) * _F16
    window = max(0, header.number("attention.sliding_window"))
    slides = _slides(header, layers) if window else (False,) * layers
    state, has_both = _layer_state(header, layers), header.architecture == "falcon-h1"
    return tuple(
        Kept(
            token=max(0, count * width),
            window=window if slid else 0,
            sequence=max(0, state) if has_both or not count else 0,
        )
        for count, slid in zip(heads, slides, strict=True)
    )


def sliding(header: Header) -> tuple[int, int]:
    """The window of the sliding layers, in tokens, and the bytes that one token takes in them, at
    f16; zeros where no layer slides, or the header does not say which.
    """
    layers = min(header.number("block_count"), _MOST_LAYERS)
    window = max(0, header.number("attention.sliding_window"))
    slides = _slides(header, layers) if window else ()
    heads = sum(count for count, one in zip(_heads(header, layers), slides, strict=False) if one)
    taken = max(0, heads * _token_width(header, layers) * _F16)
    return (window, taken) if taken else (0, 0)


def _slides(header: Header, layers: int) -> tuple[bool, ...]:
    key = "attention.sliding_window_pattern"
    if isinstance(header.metadata.get(f"{header.architecture}.{key}"), tuple):
        return tuple(map(bool, header.numbers(key, layers)))
    every = header.number(key, _FULL_EVERY.get(header.architecture, 1))
    return tuple(every > 0 and layer % every < every - 1 for layer in range(layers))


def kv_bytes_per_token(header: Header) -> int:
    """Bytes that the keys and values of one token take over all layers, at f16.

    Layers with a sliding window are counted as if they saw everything, which is what they take
    where all of it is kept (`swa_full`); `sliding` tells them apart.
    """
    if header.architecture in _FORGETFUL:
        return 0
    layers = min(header.number("block_count"), _MOST_LAYERS)
    return max(0, sum(_heads(header, layers)) * _token_width(header, layers) * _F16)


def state_bytes(header: Header) -> int:
    """Bytes of the state that recurrent layers keep of one sequence; it has one size."""
    if header.architecture in _FORGETFUL:
        return 0
    layers = min(header.number("block_count"), _MOST_LAYERS)
    recurrent = _recurrent_layers(header, _heads(header, layers))
    return max(0, recurrent * _layer_state(header, layers))


def _heads(header: Header, layers: int) -> tuple[int, ...]:
    """The KV heads of each layer; none where a layer keeps no keys."""
    if header.architecture in _RECURRENT:
        return (0,) * layers
    heads = header.numbers("attention.head_count_kv", layers, _query_heads(header, layers))
    if header.architecture in _INTERVALS:
        interval = max(1, header.number("full_attention_interval", 4))
        return tuple(
            count if (place + 1) % interval == 0 else 0 for place, count in enumerate(heads)
        )
    return heads


def _token_width(header: Header, layers: int) -> int:
    """Numbers that one KV head keeps of a token."""
    width = header.number("embedding_length") // _query_heads(header, layers)
    key = header.number("attention.key_length", width)
    if header.number("attention.key_length_mla"):
        return key  # compressed: the values are computed from the keys
    return key + header.number("attention.value_length", width)


def query_heads(header: Header) -> int:
    """Attention heads of a layer, in the layer that has the most; at least one."""
    return _query_heads(header, min(header.number("block_count"), _MOST_LAYERS))


def _query_heads(header: Header, layers: int) -> int:
    return max(1, *header.numbers("attention.head_count", max(layers, 1), 1))


def _recurrent_layers(header: Header, heads: tuple[int, ...]) -> int:
    """How many layers have a state: those without KV heads; all, where layers have both."""
    return len(heads) if header.architecture == "falcon-h1" else heads.count(0)


def _layer_state(header: Header, layers: int) -> int:
    """Bytes of one layer's state of one sequence, by the kind of state that the header names."""
    width = header.number("embedding_length")
    if size := header.number("wkv.head_size"):
        return (header.number("token_shift_count", 2) + size) * width * _F32
    if taps := header.number("shortconv.l_cache"):
        return (taps - 1) * width * _F32
    taps = header.number("ssm.conv_kernel")
    if size := header.number("kda.head_dim"):
        inner = size * _query_heads(header, layers)
        return (3 * ((taps or 4) - 1) + size) * inner * _F32
    state, inner = header.number("ssm.state_size"), header.number("ssm.inner_size")
    channels = inner + 2 * header.number("ssm.group_count") * state
    return (max(0, taps - 1) * channels + state * inner) * _F32
