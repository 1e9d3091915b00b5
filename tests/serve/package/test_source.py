"""The files of a model, one or several."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from p2p_mesh.errors import ModelError
from p2p_mesh.serve.package.source import check_source, files_of, read_source
from p2p_mesh.testing.models import write_model
from p2p_mesh.testing.packages import split_model


def test_split_model_is_read_as_a_whole(model: Path) -> None:
    one, several = read_source(model), read_source(split_model(model))
    assert len(several.parts) == 3
    assert [tensor.name for _, tensor in several.tensors] == [name.name for name in
                                                              one.header.tensors]  # fmt: skip
    assert several.header.number("block_count") == one.header.number("block_count")
    assert several.size >= one.size - 4096
    check_source(several)


def test_other_file_than_the_first_is_refused(model: Path) -> None:
    second = split_model(model).with_name("tiny-00002-of-00003.gguf")
    with pytest.raises(ModelError, match=r"name the first, tiny-00001-of-00003\.gguf"):
        read_source(second)


def test_missing_file_is_named(model: Path) -> None:
    first = split_model(model)
    first.with_name("tiny-00003-of-00003.gguf").unlink()
    with pytest.raises(ModelError, match=r"tiny-00003-of-00003\.gguf is missing beside it"):
        read_source(first)


def test_bad_file_among_several_is_named(model: Path) -> None:
    first = split_model(model)
    first.with_name("tiny-00002-of-00003.gguf").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"tiny-00002-of-00003\.gguf beside it: it is no GGUF"):
        read_source(first)


def test_file_that_was_renamed_is_found_out(model: Path, tmp_path: Path) -> None:
    first = split_model(model)
    first.with_name("tiny-00003-of-00003.gguf").write_bytes(
        first.with_name("tiny-00002-of-00003.gguf").read_bytes()
    )
    with pytest.raises(ModelError, match="file 1 of 3, and in its name 2 of 3"):
        read_source(first)
    with pytest.raises(ModelError, match="file 0 of 3, and in its name 0 of 1"):
        read_source(first.rename(tmp_path / "alone.gguf"))


def test_files_of_two_models_are_found_out(model: Path, tmp_path: Path) -> None:
    first = split_model(model)
    (tmp_path / "other").mkdir()
    other = split_model(Path(write_model(tmp_path / "other" / "tiny.gguf", endless=True).path))
    last = "tiny-00003-of-00003.gguf"
    first.with_name("tiny-00002-of-00003.gguf").write_bytes(first.read_bytes())
    with pytest.raises(ModelError, match="says in its header"):
        read_source(first)
    first.with_name(last).write_bytes(other.with_name(last).read_bytes())
    first.with_name("tiny-00002-of-00003.gguf").write_bytes(
        other.with_name("tiny-00002-of-00003.gguf").read_bytes()
    )
    check_source(read_source(first))  # of one shape: nothing in the files tells them apart


def part(folder: Path, number: int, tensor: str, promised: int = 2) -> Path:
    """One of two files of a model, with one tensor."""
    path = folder / f"m-{number:05}-of-00002.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.no", number - 1)
    writer.add_uint16("split.count", 2)
    writer.add_int32("split.tensors.count", promised)
    writer.add_tensor(tensor, np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_number_of_tensors_is_as_promised(tmp_path: Path) -> None:
    first = part(tmp_path, 1, "blk.0.a", promised=3)
    part(tmp_path, 2, "blk.0.b")
    with pytest.raises(ModelError, match="should have 3 tensors and have 2"):
        read_source(first)


def test_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    first = part(tmp_path, 1, "blk.0.a")
    part(tmp_path, 2, "blk.0.a")
    with pytest.raises(ModelError, match=r"tensor 'blk\.0\.a' is in two of its files"):
        check_source(read_source(first))


def test_absurd_number_of_files_is_refused() -> None:
    with pytest.raises(ModelError, match="1024 is the limit"):
        files_of(Path("big-00001-of-99999.gguf"))
    with pytest.raises(ModelError, match="in 0 files"):
        files_of(Path("big-00001-of-00000.gguf"))
    with pytest.raises(ModelError, match="file 0 of a model in 2"):
        files_of(Path("big-00000-of-00002.gguf"))
