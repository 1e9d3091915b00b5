"""The header of a GGUF file, honest and hostile."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.gguf import BLOCKS, Header, read_header
from p2p_mesh.errors import ModelError


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def file(*parts: bytes, tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)


def read(data: bytes) -> Header:
    return read_header(data, len(data))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What gguf's own writer makes."""
    path: Path = tmp_path_factory.mktemp("gguf") / "real.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_name("tiny")
    writer.add_token_list(["a", "b", "c"])
    writer.add_array("llama.attention.head_count_kv", [2, 1])
    writer.add_tensor("token_embd.weight", np.zeros((3, 8), np.float32))
    writer.add_tensor("output.weight", np.zeros((3, 8), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_header_says_what_the_writer_wrote(real: bytes) -> None:
    header = read(real)
    assert header.architecture == "llama"
    assert header.metadata["general.name"] == "tiny"
    assert header.number("block_count") == 2
    assert header.number("missing", 7) == 7
    assert header.numbers("attention.head_count_kv", 2) == (2, 1)
    assert header.numbers("context_length", 2) == (128, 128)


def test_tensors_lie_where_gguf_finds_them(real: bytes, tmp_path: Path) -> None:
    path = tmp_path / "real.gguf"
    path.write_bytes(real)
    theirs = [(one.name, one.data_offset, one.n_bytes) for one in gguf.GGUFReader(path).tensors]
    assert [(one.name, one.offset, one.size) for one in read(real).tensors] == theirs


def test_every_shorter_file_is_truncated(real: bytes) -> None:
    last = read(real).tensors[-1]
    for end in range(24, last.offset + last.size, 7):
        with pytest.raises(ModelError, match="truncated"):
            read(real[:end])


def test_beginning_is_enough_where_the_size_is_told(real: bytes) -> None:
    beginning = real[: read(real).tensors[0].offset]
    assert read_header(beginning, len(real)) == read(real)


def test_block_sizes_are_ggmls() -> None:
    theirs = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert dict(BLOCKS) == theirs


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no GGUF"),
        (b"PK\x03\x04" + bytes(40), "no GGUF"),
        (file(version=1), "version 1"),
        (file(tensors=2**40), "tensors"),
        (file(keys=2**40), "keys"),
        (file(key("x", 99, b""), keys=1), "unknown type 99"),
        (file(key("x", 8, struct.pack("<Q", 2**60)), keys=1), "bytes of text"),
        (file(key("x", 9, struct.pack("<IQ", 4, 2**60)), keys=1), "elements"),
        (file(key("x", 9, struct.pack("<IQ", 9, 1)), keys=1), "array of type 9"),
        (file(key("x", 9, struct.pack("<IQ", 4, 2**20)), keys=1), "truncated"),
        (file(key("general.alignment", 4, struct.pack("<I", 0)), keys=1), "alignment"),
        (file(tensor("t", (1,) * 5), tensors=1), "5 dimensions"),
        (file(tensor("t", (2**40, 2**40)), tensors=1), "truncated"),
    ],
)
def test_impossible_header_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        read(data)


def test_tensor_of_unknown_type_is_taken_at_its_offset() -> None:
    header = read(file(tensor("t", (4,), kind=77), tensors=1) + bytes(64))
    assert header.tensors[0].size == 0


def test_long_arrays_are_stepped_over() -> None:
    long = key("scores", 9, struct.pack("<IQ", 6, 5000) + bytes(20_000))
    after = key("after", 4, struct.pack("<I", 9))
    header = read(file(long, after, keys=2))
    assert (header.metadata["scores"], header.metadata["after"]) == ((), 9)


def test_values_of_the_wrong_type_are_not_believed() -> None:
    header = Header({"general.architecture": 3, ".block_count": "many", ".heads": ("a", 2)}, ())
    assert header.architecture == ""
    assert header.number("block_count", 1) == 1
    assert header.numbers("heads", 2, 5) == (5, 2)
    assert header.numbers("block_count", 2, 1) == (1, 1)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_a_model_error(tail: bytes) -> None:
    for head in (b"", b"GGUF\x03\0\0\0", file(keys=1), file(tensors=1), file(tensors=1, keys=1)):
        data = head + tail
        try:
            read(data)
        except ModelError:
            continue
