"""Bytes in ranges of files, read and hashed."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.package import PIECE
from p2p_mesh.errors import ModelError, RequestError
from p2p_mesh.serve.package.blob import Blob, Hashed, Job, Segment, Stopped, look_at, whole


@given(st.lists(st.binary(max_size=9), max_size=9), st.data())
def test_any_range_is_what_lies_there(parts: list[bytes], data: st.DataObject) -> None:
    blob, text = Blob([Segment(len(part), part) for part in parts]), b"".join(parts)
    assert blob.size == len(text)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    assert blob.read(start, end - start) == text[start:end]


def test_files_given_bytes_and_zeros_are_one_blob(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    file = look_at(tmp_path / "a")
    blob = Blob([Segment(2, b"ab"), Segment(3, file=file, offset=4), Segment(2), Segment(0)])
    assert blob.read(0, 7) == b"ab456\0\0"
    assert blob.read(1, 3) == b"b45"
    assert blob.files == (file,)
    assert whole(file).read(8, 2) == b"89"


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 11), (11, 0), (5, 6), (0, -1)])
def test_range_that_is_not_there_is_refused(tmp_path: Path, offset: int, length: int) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with pytest.raises(RequestError, match="10 bytes"):
        whole(look_at(tmp_path / "a")).read(offset, length)


def test_file_that_was_changed_gives_no_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    blob = whole(look_at(path))
    os.utime(path, ns=(1, 1))
    with pytest.raises(ModelError, match="was changed while it was in use"):
        blob.read(0, 1)
    path.unlink()
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        blob.files[0].check()


def test_hashes_are_of_the_whole_and_of_each_piece() -> None:
    zeros = Blob([Segment(PIECE + 5)])
    seen: list[float] = []
    found = Job(seen.append).hash({"zeros": zeros, "none": Blob([])})
    assert found["zeros"] == Hashed(
        hashlib.sha256(bytes(PIECE + 5)).hexdigest(),
        (hashlib.sha256(bytes(PIECE)).hexdigest(), hashlib.sha256(bytes(5)).hexdigest()),
    )
    assert found["none"] == Hashed(hashlib.sha256().hexdigest(), ())
    assert seen[-1] == 1.0


def test_pieces_are_written_in_order() -> None:
    written: dict[str, bytes] = {}

    def write(name: str, piece: bytes) -> None:
        written[name] = written.get(name, b"") + piece

    parts = {str(one): Blob([Segment(PIECE), Segment(3, b"%03d" % one)]) for one in range(3)}
    Job().hash(parts, write)
    assert {name: data[-3:] for name, data in written.items()} == {
        "0": b"000", "1": b"001", "2": b"002",
    }  # fmt: skip


def test_job_that_is_stopped_ends() -> None:
    job = Job()
    job.stop()
    with pytest.raises(Stopped):
        job.hash({"a": Blob([Segment(5)])})


def test_what_fails_ends_the_other_work_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    gone = whole(look_at(tmp_path / "a"))
    (tmp_path / "a").unlink()
    with pytest.raises(ModelError):
        Job().hash({"gone": gone, "endless": Blob([Segment(1 << 50)])})
