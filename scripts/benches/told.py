"""Models whose answers are known: each token is followed by the next one of a fixed order, so that
a small model of the same vocabulary guesses what a large one says, always.

Their layers compute as long as those of any model, and add nothing: what leaves the last is the
embedding of the last token, and the output turns it into the token that follows.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np

from p2p_mesh.testing.models import Shape, write_model

_PLAIN = 1
"""The type of a token that is text."""
_SILENT = ("attn_output.weight", "ffn_down.weight")
"""What a layer adds comes through these."""


DRAFT = Shape(layers=1, width=64, feed=128, vocabulary=32000, context=8192)


def told_models(folder: Path, model: Path) -> tuple[Path, Path]:
    """A model like that one, and a draft that is always right about it."""
    plain, told, draft = (folder / f"{name}.gguf" for name in ("plain", "told", "draft"))
    write_model(plain, shape=DRAFT)
    tell(model, told)
    tell(plain, draft)
    return told, draft


def tell(source: Path, target: Path) -> None:
    """Copies a llama whose embedding and output are of one type, with the answers changed."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            _copy(writer, field)
    tensors = {one.name: one for one in reader.tensors}
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    for one in reader.tensors:
        writer.add_tensor(one.name, _data(one, tensors, kinds), raw_dtype=one.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy(writer: Any, field: Any) -> None:
    kind = field.types[0]
    inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
    writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)


def _data(tensor: Any, tensors: dict[str, Any], kinds: list[int]) -> Any:
    if tensor.name.endswith(_SILENT):
        return np.zeros_like(tensor.data)
    if tensor.name != "output.weight":
        return tensor.data
    embeddings, output = tensors["token_embd.weight"].data, np.zeros_like(tensor.data)
    order = followers(kinds)
    output[list(order.values())] = embeddings[list(order)]
    return output


def followers(kinds: list[int]) -> dict[int, int]:
    """What follows each token that is text: one ring of all of them, so that nothing is said twice
    before all else was said.
    """
    tokens = [token for token, kind in enumerate(kinds) if kind == _PLAIN]
    Random(0).shuffle(tokens)
    return dict(zip(tokens, [*tokens[1:], tokens[0]], strict=True))
