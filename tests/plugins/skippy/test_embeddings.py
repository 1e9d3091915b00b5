from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from meshnode_skippy.embeddings import Embeddings

from p2p_mesh.errors import ModelError
from p2p_mesh.testing.models import write_model

NAME = "token_embd.weight"
TOKENS = np.array([5, 0, 5, 63], np.int32)
TABLE = np.random.default_rng(0).standard_normal((64, 256), dtype=np.float32)
KINDS = gguf.GGMLQuantizationType


def write(path: Path, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """A file with the table in that type; what its rows are."""
    data = gguf.quants.quantize(TABLE, kind)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor(NAME, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return np.asarray(gguf.quants.dequantize(data, kind))


@pytest.mark.parametrize("kind", [KINDS.F32, KINDS.F16, KINDS.BF16, KINDS.Q8_0, KINDS.Q4_0])
def test_rows_are_those_of_the_table(tmp_path: Path, kind: gguf.GGMLQuantizationType) -> None:
    right = write(tmp_path / "m.gguf", kind)
    found = Embeddings(tmp_path / "m.gguf").rows(TOKENS)
    assert found.dtype == np.float32
    assert np.array_equal(found, right[TOKENS])


def test_rows_of_calls_of_any_size(tmp_path: Path) -> None:
    right = write(tmp_path / "m.gguf", KINDS.Q8_0)
    table = Embeddings(tmp_path / "m.gguf")
    for tokens in (TOKENS[:1], TOKENS, TOKENS[1:3], TOKENS[:0]):
        assert np.array_equal(table.rows(tokens), right[tokens])


@pytest.mark.parametrize("kind", [KINDS.F32, KINDS.Q8_0])
@pytest.mark.parametrize("token", [-1, 64])
def test_token_that_is_not_there(
    tmp_path: Path, kind: gguf.GGMLQuantizationType, token: int
) -> None:
    write(tmp_path / "m.gguf", kind)
    with pytest.raises(IndexError, match="not in the table of 64"):
        Embeddings(tmp_path / "m.gguf").rows(np.array([1, token], np.int32))


@pytest.mark.parametrize("name", ["nothing.weight", "output_norm.weight"])
def test_file_without_the_table_is_refused(tmp_path: Path, name: str) -> None:
    write_model(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=rf"m\.gguf has no table {name}"):
        Embeddings(tmp_path / "m.gguf", name)
