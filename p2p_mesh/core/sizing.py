"""How much memory a model needs beside its weights."""

from __future__ import annotations

from p2p_mesh.core.gguf import Header

_F16 = 2


def kv_bytes_per_token(header: Header) -> int:
    """Bytes of KV cache that one token takes over all layers, at f16.

    layers × KV heads × (key length + value length) × 2. An upper bound: layers with a sliding
    window, recurrent layers and compressed caches (MLA) take less.
    """
    layers = min(header.number("block_count"), 4096)
    heads = max(1, *header.numbers("attention.head_count", max(layers, 1), 1))
    width = header.number("embedding_length") // heads
    key = header.number("attention.key_length", width)
    value = header.number("attention.value_length", width)
    by_layer = header.numbers("attention.head_count_kv", layers, heads)
    return sum(by_layer) * (key + value) * _F16
