from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from p2p_mesh.testing.models import CHATML, Lies, Shape, write_model, write_truncated


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_model(tmp_path / name, seed=seed)
    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again != other


def test_a_model_is_small_and_describes_itself(tmp_path: Path) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    assert (model.id, model.architecture, model.context_length) == ("tiny", "llama", 512)
    assert model.size_bytes == (tmp_path / "tiny.gguf").stat().st_size < 300_000
    assert model.kv_bytes_per_token == 256


@pytest.mark.parametrize("template", [None, CHATML])
def test_the_template_is_in_the_header(tmp_path: Path, template: str | None) -> None:
    write_model(tmp_path / "tiny.gguf", template=template)
    field = gguf.GGUFReader(tmp_path / "tiny.gguf").fields.get("tokenizer.chat_template")
    assert (field and field.contents()) == template


def test_lies_are_told_and_weights_kept(tmp_path: Path) -> None:
    write_model(tmp_path / "liar.gguf", lies=Lies(layers=10**9), shape=Shape(layers=1))
    reader = gguf.GGUFReader(tmp_path / "liar.gguf")
    assert reader.fields["llama.block_count"].contents() == 10**9
    assert len(reader.tensors) == 12


def test_wide_weights_are_f64(tmp_path: Path) -> None:
    write_model(tmp_path / "wide.gguf", wide=True)
    kinds = {tensor.tensor_type for tensor in gguf.GGUFReader(tmp_path / "wide.gguf").tensors}
    assert kinds == {gguf.GGMLQuantizationType.F64}


def test_an_endless_model_gives_its_ends_no_weight(tmp_path: Path) -> None:
    write_model(tmp_path / "endless.gguf", endless=True)
    output = next(tensor for tensor in gguf.GGUFReader(tmp_path / "endless.gguf").tensors
                  if tensor.name == "output.weight")  # fmt: skip
    assert not output.data[[2, 4]].any()
    assert output.data[[1, 3]].any()


def test_a_truncated_file_is_shorter(tmp_path: Path) -> None:
    whole, cut = write_model(tmp_path / "a"), write_truncated(tmp_path / "b", keep=0.25)
    assert cut.size_bytes == whole.size_bytes // 4
