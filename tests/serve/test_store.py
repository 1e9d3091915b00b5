"""Which file a name means, what is in it, and its digest."""

import hashlib
import os
from pathlib import Path

import pytest
import trio

from p2p_mesh.errors import ModelError
from p2p_mesh.serve import store
from p2p_mesh.serve.store import Digests, find, read, select
from p2p_mesh.testing.models import write_model


@pytest.fixture
def digests(tmp_path: Path) -> Digests:
    return Digests(tmp_path / "cache" / "digests.json")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(write_model(tmp_path / "tiny.gguf").path)


def test_path_is_a_model(model: Path) -> None:
    found = read(find(str(model)))
    assert (found.id, found.architecture) == ("tiny", "llama")
    assert found.size_bytes == model.stat().st_size
    assert found.kv_bytes_per_token > 0


def test_bundled_model_is_known_by_its_name() -> None:
    assert store.DEFAULT_MODEL in store.bundled()
    assert read(find(store.DEFAULT_MODEL)).architecture == "llama"


@pytest.mark.parametrize("reference", ["nothing-of-that-name", "/nowhere/x.gguf"])
def test_missing_model_is_named_with_what_there_is(reference: str) -> None:
    with pytest.raises(ModelError, match=f"(?s){reference}.*{store.DEFAULT_MODEL}"):
        find(reference)


def test_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no file"):
        find(str(tmp_path))


def test_bad_files_are_named(tmp_path: Path, model: Path) -> None:
    for data, reason in ((b"", "is empty"), (b"hello" * 9, "no GGUF"),
                         (model.read_bytes()[:-99], "truncated")):  # fmt: skip
        path = tmp_path / "bad.gguf"
        path.write_bytes(data)
        with pytest.raises(ModelError, match=f"bad.gguf cannot be used: .*{reason}"):
            read(path)


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read(tmp_path / "gone.gguf")


def test_one_file_twice_is_one_model(model: Path, digests: Digests) -> None:
    assert [one.id for one in select([str(model), str(model)], digests)] == ["tiny"]


def test_two_files_of_one_name_differ_by_digest(
    model: Path, tmp_path: Path, digests: Digests
) -> None:
    (tmp_path / "other").mkdir()
    other = Path(write_model(tmp_path / "other" / "tiny.gguf", seed=2).path)
    found = select([str(model), str(other)], digests)
    expected = [
        f"tiny@{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}" for path in (model, other)
    ]
    assert [one.id for one in found] == expected


def test_digest_is_computed_once(model: Path, digests: Digests) -> None:
    expected = hashlib.sha256(model.read_bytes()).hexdigest()
    assert digests.compute(model) == expected
    stat = model.stat()
    size = stat.st_size
    with model.open("r+b") as file:  # other bytes, same inode, size and time: still remembered
        file.seek(size - 1)
        file.write(b"\xff")
    os.utime(model, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digests.compute(model) == expected
    model.touch()
    assert digests.compute(model) != expected


async def test_digest_is_computed_beside_the_loop(model: Path, digests: Digests) -> None:
    assert await digests.of(model) == digests.compute(model)


async def test_digests_computed_at_once_are_all_remembered(
    tmp_path: Path, digests: Digests
) -> None:
    paths = [Path(write_model(tmp_path / f"{n}.gguf", seed=n).path) for n in range(4)]
    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(digests.of, path)
    assert len(digests._read()) == 4


def test_name_that_is_no_text_is_refused(model: Path, tmp_path: Path) -> None:
    for name in (b"caf\xe9.gguf", b"two\nlines.gguf"):
        path = tmp_path / os.fsdecode(name)
        model.rename(path)
        with pytest.raises(ModelError, match="rename it"):
            read(path)
        path.rename(model)


@pytest.mark.parametrize("damage", [b"", b"[]", b"\xff"])
def test_damaged_cache_is_an_empty_one(model: Path, tmp_path: Path, damage: bytes) -> None:
    cache = tmp_path / "digests.json"
    cache.write_bytes(damage)
    assert Digests(cache).compute(model) == hashlib.sha256(model.read_bytes()).hexdigest()


def test_cache_that_cannot_be_written_does_no_harm(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert len(Digests(tmp_path / "file" / "digests.json").compute(model)) == 64
