"""Tiny projectors for tests: GGUF files that turn images or sounds into rows of a model's width.

There is one of each kind that an engine must treat differently. The weights are random and the
bytes the same for the same arguments, as in `models`, whose models they fit by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import gguf
import msgspec
import numpy as np

from p2p_mesh.core.records import ModelFile
from p2p_mesh.testing.models import SMALL, Shape, write_model

Kind = Literal["vision", "whole", "grid", "audio"]
"""`vision` gives 16 rows for any image (as LLaVA); `whole` too, which the model must read in one
call, each seeing all others (as Gemma 3); `grid` a row for each 28 x 28 pixels, in positions that
go both ways (as Qwen2-VL: for `write_grid_model` alone); `audio` 30 rows for each half minute (as
Ultravox).
"""
Tensors = Iterator[tuple[str, Any]]

_WIDTH, _FEED, _HEADS, _LAYERS = 32, 64, 2, 2
_PATCH = 14
_BANDS, _FRAMES, _STACK = 16, 1500, 50  # 30 seconds of sound are 1,500 frames for Whisper's encoder
_TYPES: Mapping[Kind, str] = {
    "vision": "mlp", "whole": "gemma3", "grid": "qwen2vl_merger", "audio": "ultravox",
}  # fmt: skip
_PIXELS: Mapping[Kind, int] = {"vision": 4 * _PATCH, "whole": 8 * _PATCH, "grid": 8 * _PATCH}


def write_projector(
    path: Path, *, kind: Kind = "vision", width: int = SMALL.width, seed: int = 0
) -> Path:
    """A projector for models of that width; returns where it is."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_string("clip.projector_type", _TYPES[kind])
    _add_encoder(writer, "audio" if kind == "audio" else "vision", width)
    if kind == "audio":
        writer.add_uint32("clip.audio.num_mel_bins", _BANDS)
        writer.add_uint32("clip.audio.projector.stack_factor", _STACK)
    else:
        _add_vision(writer, kind)
    for name, data in _MAKERS[kind](_Weights(seed), width):
        writer.add_tensor(name, data)
    _write(writer)
    return path


def write_grid_model(path: Path, *, seed: int = 0, shape: Shape = SMALL) -> ModelFile:
    """A model whose positions go both ways through an image, for projectors of the kind `grid`."""
    whole = write_model(path, seed=seed, shape=shape)
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path, "qwen2vl")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            name = field.name.replace("llama.", "qwen2vl.", 1)
            writer.add_key_value(name, field.contents(), field.types[0], _element(field))
    half = shape.width // shape.heads // 4
    writer.add_rope_dimension_sections([half, half // 2, half // 2, 0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    _write(writer)
    return msgspec.structs.replace(whole, architecture="qwen2vl", size_bytes=path.stat().st_size)


def _element(field: Any) -> Any:
    return field.types[-1] if len(field.types) > 1 else None


def _write(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_encoder(writer: Any, sense: str, width: int) -> None:
    writer.add_bool(f"clip.has_{sense}_encoder", True)
    for name, value in (
        ("embedding_length", _WIDTH),
        ("feed_forward_length", _FEED),
        ("block_count", _LAYERS),
        ("attention.head_count", _HEADS),
        ("projection_dim", width),
    ):
        writer.add_uint32(f"clip.{sense}.{name}", value)
    writer.add_float32(f"clip.{sense}.attention.layer_norm_epsilon", 1e-5)


def _add_vision(writer: Any, kind: Kind) -> None:
    writer.add_bool("clip.use_gelu", True)
    writer.add_uint32("clip.vision.image_size", _PIXELS[kind])
    writer.add_uint32("clip.vision.patch_size", _PATCH)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    if kind == "whole":
        writer.add_uint32("clip.vision.projector.scale_factor", 2)


class _Weights:
    """Random arrays, of which each keeps the size of what it multiplies."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def matrix(self, *shape: int) -> Any:
        drawn = self._random.standard_normal(shape, dtype=np.float32)
        return drawn * np.float32(np.prod(shape[1:]) ** -0.5)

    def kernel(self, *shape: int) -> Any:
        """What a convolution multiplies with: half precision, which ggml wants there."""
        return self.matrix(*shape).astype(np.float16)


def _linear(name: str, weights: _Weights, rows: int, columns: int) -> Tensors:
    yield f"{name}.weight", weights.matrix(rows, columns)
    yield f"{name}.bias", np.zeros(rows, np.float32)


def _norm(name: str) -> Tensors:
    yield f"{name}.weight", np.ones(_WIDTH, np.float32)
    yield f"{name}.bias", np.zeros(_WIDTH, np.float32)


def _encoder(prefix: str, weights: _Weights) -> Tensors:
    for layer in range(_LAYERS):
        block = f"{prefix}.blk.{layer}."
        yield from _norm(f"{block}ln1")
        yield from _norm(f"{block}ln2")
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            for part, data in _linear(block + name, weights, _WIDTH, _WIDTH):
                if prefix == "v" or part != f"{block}attn_k.bias":  # Whisper has none
                    yield part, data
        yield from _linear(f"{block}ffn_up", weights, _FEED, _WIDTH)
        yield from _linear(f"{block}ffn_down", weights, _WIDTH, _FEED)


def _patches(kind: Kind, weights: _Weights) -> Tensors:
    yield "v.patch_embd.weight", weights.kernel(_WIDTH, 3, _PATCH, _PATCH)
    yield "v.position_embd.weight", weights.matrix((_PIXELS[kind] // _PATCH) ** 2, _WIDTH)


def _vision(weights: _Weights, width: int) -> Tensors:
    yield from _patches("vision", weights)
    yield from _encoder("v", weights)
    yield from _linear("mm.0", weights, width, _WIDTH)
    yield from _linear("mm.2", weights, width, width)


def _whole(weights: _Weights, width: int) -> Tensors:
    yield from _patches("whole", weights)
    yield from _encoder("v", weights)
    yield "mm.input_projection.weight", weights.matrix(_WIDTH, width)
    yield "mm.soft_emb_norm.weight", np.ones(_WIDTH, np.float32)


def _grid(weights: _Weights, width: int) -> Tensors:
    yield "v.patch_embd.weight", weights.kernel(_WIDTH, 3, _PATCH, _PATCH)
    yield "v.patch_embd.weight.1", weights.kernel(_WIDTH, 3, _PATCH, _PATCH)
    yield from _encoder("v", weights)
    yield from _linear("mm.0", weights, 4 * _WIDTH, 4 * _WIDTH)
    yield from _linear("mm.2", weights, width, 4 * _WIDTH)


def _audio(weights: _Weights, width: int) -> Tensors:
    for number, bands in ((1, _BANDS), (2, _WIDTH)):
        yield f"a.conv1d.{number}.weight", weights.kernel(_WIDTH, bands, 3)
        yield f"a.conv1d.{number}.bias", np.zeros((_WIDTH, 1), np.float32)
    yield "a.position_embd.weight", weights.matrix(_FRAMES, _WIDTH)
    yield from _encoder("a", weights)
    yield "mm.a.norm_pre.weight", np.ones(_WIDTH * _STACK, np.float32)
    yield "mm.a.mlp.1.weight", weights.matrix(2 * _FEED, _WIDTH * _STACK)
    yield "mm.a.norm_mid.weight", np.ones(_FEED, np.float32)
    yield "mm.a.mlp.2.weight", weights.matrix(width, _FEED)


_MAKERS: Mapping[Kind, Callable[[_Weights, int], Tensors]] = {
    "vision": _vision, "whole": _whole, "grid": _grid, "audio": _audio,
}  # fmt: skip
