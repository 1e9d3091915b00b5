"""Models of llama.cpp's fixtures, grown until they can be asked: more layers, which differ; more
experts than a token uses; a vocabulary that spells any text; a longer context. Weights are random.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from meshnode_skippy.composing import repeat

from p2p_mesh.testing.models import BOS, EOS, IM_END
from p2p_mesh.testing.vocabulary import sentence_pieces

VOCABULARY, CONTEXT = 512, 1024
EXPERTS, USED = 8, 2
_SCALES = {"token_embd.weight": 8.0, "output.weight": 8.0}
"""Of the tables: what is said then depends on the layers, more than on the last token."""
_ROUTED = ("ffn_gate_inp.", "exp_probs_b.")
_NOISE = 0.25
"""Of each weight: what no two layers share."""


def grow(fixture: Path, target: Path, times: int) -> None:
    """A model with so many times the layers."""
    deeper = target.with_suffix(".deeper")
    repeat(fixture, deeper, times)
    reader = gguf.GGUFReader(deeper)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    experts = reader.fields.get(f"{architecture}.expert_count")
    held = int(experts.contents()) if experts else 0
    _add_keys(writer, reader, architecture, held)
    random = np.random.default_rng(0)
    for one in reader.tensors:
        writer.add_tensor(one.name, _grown(one, held, random))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    deeper.unlink()


def _add_keys(writer: Any, reader: Any, architecture: str, experts: int) -> None:
    changed = {f"{architecture}.vocab_size": VOCABULARY, f"{architecture}.context_length": CONTEXT}
    if experts:
        changed |= {
            f"{architecture}.expert_count": EXPERTS,
            f"{architecture}.expert_used_count": USED,
        }
    for field in reader.fields.values():
        if field.name.startswith(("GGUF.", "general.architecture", "tokenizer.")):
            continue
        if field.name.endswith(".pooling_type"):
            continue  # what fixtures say there is none that our headers may have
        kind = field.types[0]
        is_array = kind == gguf.GGUFValueType.ARRAY
        value = changed.get(field.name, field.contents())
        if not is_array or value:  # the writer refuses empty ones
            inner = field.types[-1] if is_array else None
            writer.add_key_value(field.name, value, kind, sub_type=inner)
    _add_vocabulary(writer)


def _add_vocabulary(writer: Any) -> None:
    pieces, kinds = zip(*sentence_pieces(VOCABULARY), strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(place) for place in range(VOCABULARY)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)


def _grown(tensor: Any, experts: int, random: Any) -> Any:
    data = np.array(tensor.data)
    if data.dtype != np.float32:
        return data
    if tensor.name in _SCALES:
        data = _like(data, VOCABULARY, random) * np.float32(_SCALES[tensor.name])
        if tensor.name == "output.weight":
            data[[EOS, IM_END]] = 0  # never the likeliest
        return data
    name = tensor.name.split(".", 2)[-1]
    if experts and data.shape[0] == experts and ("exps" in name or name.startswith(_ROUTED)):
        return _like(data, EXPERTS, random)
    if tensor.name.startswith("blk.") and data.ndim > 1:
        return data + _like(data, len(data), random) * np.float32(_NOISE)
    return data


def _like(data: Any, count: int, random: Any) -> Any:
    """So many random rows, as large as those there are."""
    drawn = random.standard_normal((count, *data.shape[1:]), dtype=np.float32)
    return drawn * np.float32(data.std() or 1)
