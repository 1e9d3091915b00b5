"""Which file a name means, what is in it, and its digest."""

import hashlib
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import trio
from huggingface_hub import constants

from p2p_mesh.core.names import Digest
from p2p_mesh.core.package import MANIFEST
from p2p_mesh.core.records import Shard
from p2p_mesh.errors import ModelError
from p2p_mesh.serve import store
from p2p_mesh.serve.package.blob import Job
from p2p_mesh.serve.package.build import build
from p2p_mesh.serve.store import Digests, find, read, select, stock
from p2p_mesh.testing.hub import serve_hub
from p2p_mesh.testing.memory import cached, forget
from p2p_mesh.testing.models import write_model, write_moe
from p2p_mesh.testing.packages import split_model
from p2p_mesh.testing.projectors import write_projector


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


@pytest.mark.parametrize("reference", ["x" * 300, "~nobody-of-this-name/x.gguf", "nul\0.gguf"])
def test_name_that_no_file_can_have_is_a_missing_model(reference: str) -> None:
    with pytest.raises(ModelError, match="there is no model"):
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


def test_missing_model_is_a_wish_where_a_mesh_can_be_asked(digests: Digests) -> None:
    found = stock(["~/models/big.gguf", "qwen/large", "qwen/large"], (), digests, may_wish=True)
    assert (found.models, found.wishes) == ((), ("big", "qwen/large"))
    with pytest.raises(ModelError, match="there is no model 'qwen/large'"):
        stock(["qwen/large"], (), digests)


@pytest.mark.parametrize("name", ["", "x" * 257, "two\nlines"])
def test_name_that_no_model_can_have_is_no_wish(name: str, digests: Digests) -> None:
    with pytest.raises(ModelError):
        stock([name], (), digests, may_wish=True)


def test_folder_stands_by_without_what_is_no_model(tmp_path: Path, digests: Digests) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    model = write_model(folder / "b.gguf")
    write_model(folder / "a.gguf", seed=2)
    (folder / "bad.gguf").write_bytes(b"no model")
    (folder / "notes.txt").write_text("")
    (folder / "folder.gguf").mkdir()
    (folder / "gone.gguf").symlink_to(folder / "nowhere")
    write_projector(folder / "mmproj-b.gguf")
    found = stock([str(model.path)], [str(folder), str(folder)], digests)
    assert [one.id for one in found.models] == ["b"]
    assert [one.id for one in found.standby] == ["a"]
    (note,) = found.notes
    assert "bad.gguf cannot be used" in note


def test_file_that_stands_by_must_be_a_model(tmp_path: Path, digests: Digests) -> None:
    assert [one.id for one in stock((), ["meshnode-demo"], digests).standby] == ["meshnode-demo"]
    (tmp_path / "bad.gguf").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"bad\.gguf cannot be used"):
        stock((), [str(tmp_path / "bad.gguf")], digests)
    with pytest.raises(ModelError, match="there is no model 'nowhere'"):
        stock((), ["nowhere"], digests, may_wish=True)


def test_served_and_standing_by_differ_in_name(
    model: Path, tmp_path: Path, digests: Digests
) -> None:
    (tmp_path / "other").mkdir()
    write_model(tmp_path / "other" / "tiny.gguf", seed=2)
    found = stock([str(model)], [str(tmp_path / "other")], digests)
    names = [one.id for one in (*found.models, *found.standby)]
    assert len(set(names)) == 2
    assert all(name.startswith("tiny@") for name in names)


def test_too_many_files_to_stand_by_are_refused(
    model: Path, digests: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_STANDBY", 0)
    with pytest.raises(ModelError, match="1 models are to stand by; a node keeps 0"):
        stock((), [str(model)], digests)


def test_link_gives_the_model_its_name(model: Path, tmp_path: Path, digests: Digests) -> None:
    link = tmp_path / "qwen.gguf"
    link.symlink_to(model.rename(tmp_path / "0a1b2c"))
    found = stock([str(link)], [str(tmp_path)], digests)
    assert [one.id for one in found.models] == ["qwen"]
    assert found.standby == ()
    assert [one.id for one in stock((), [str(tmp_path)], digests).standby] == ["qwen"]


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


def test_split_model_is_one_model(model: Path, digests: Digests) -> None:
    first = split_model(model)
    found = read(find(str(first)))
    assert (found.id, found.architecture) == ("tiny", "llama")
    assert found.size_bytes == sum(one.stat().st_size for one in model.parent.glob("tiny-*.gguf"))
    whole = [digests.file(one) for one in sorted(model.parent.glob("tiny-*.gguf"))]
    assert digests.compute(first) == hashlib.sha256("".join(whole).encode()).hexdigest()
    with pytest.raises(ModelError, match="name the first"):
        read(find(str(first.with_name("tiny-00002-of-00003.gguf"))))


def test_split_model_stands_by_once(model: Path, tmp_path: Path, digests: Digests) -> None:
    split_model(model)
    model.unlink()
    assert [one.id for one in stock((), [str(tmp_path)], digests).standby] == ["tiny"]


def test_package_is_a_model(model: Path, tmp_path: Path, digests: Digests) -> None:
    folder = tmp_path / "tiny-layers"
    build(model, folder, projectors=(), digests=digests, job=Job())
    (found,) = select([str(folder)], digests)
    one = read(model)
    assert (found.id, found.path, found.architecture) == ("tiny-layers", str(folder), "llama")
    assert found.kv_bytes_per_token == one.kv_bytes_per_token
    assert found.digest == hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    assert found.size_bytes == sum(path.stat().st_size for path in folder.rglob("*.gguf"))
    assert [one.id for one in stock((), [str(folder)], digests).standby] == ["tiny-layers"]


def test_bad_package_is_named(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(ModelError, match=f"{tmp_path.name} cannot be used: its schema_version"):
        read(find(str(tmp_path)))


def test_experts_of_a_model_are_counted(tmp_path: Path) -> None:
    found = read(Path(write_moe(tmp_path / "moe.gguf", kind="grouped").path))
    assert (found.experts, found.experts_used, found.expert_layers) == (16, 4, 1)
    assert found.expert_bytes == 16 * 3 * 32 * 64 * 34 // 32


def test_experts_of_a_split_model_are_those_of_all_its_files(tmp_path: Path) -> None:
    whole = write_moe(tmp_path / "moe.gguf")
    found = read(split_model(Path(whole.path)))
    assert (found.experts, found.expert_layers) == (16, 2)
    assert found.expert_bytes == whole.expert_bytes


def test_experts_of_a_package_are_those_of_its_layers(tmp_path: Path, digests: Digests) -> None:
    whole = write_moe(tmp_path / "moe.gguf")
    folder = tmp_path / "moe-layers"
    build(Path(whole.path), folder, projectors=(), digests=digests, job=Job())
    expected = (16, 4, 2, whole.expert_bytes)

    def experts() -> tuple[int, ...]:
        found = read(folder)
        return found.experts, found.experts_used, found.expert_layers, found.expert_bytes

    assert experts() == expected
    first, second = sorted((folder / "layers").iterdir())
    first.unlink()
    assert experts() == expected  # a layer that is not here is taken to be like the others
    second.write_bytes(b"half of it")
    assert experts() == (16, 4, 0, 0)


def test_package_whose_layers_have_no_experts_is_no_mixture(
    tmp_path: Path, digests: Digests
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "dense.gguf", "llama")
    writer.add_expert_count(2)
    writer.add_name("dense")
    writer.add_block_count(1)
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    build(tmp_path / "dense.gguf", tmp_path / "out", projectors=(), digests=digests, job=Job())
    assert read(tmp_path / "dense.gguf").experts == read(tmp_path / "out").experts == 0


@pytest.mark.parametrize(("name", "shape"), [("ffn_up_exps.weight", (3, 4, 8)),
                                             ("ffn_up_chexps.weight", (2, 4, 8))])  # fmt: skip
def test_model_whose_experts_are_in_no_known_form_is_a_model_all_the_same(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "grovemoe")
    writer.add_expert_count(2)
    writer.add_expert_used_count(2)
    writer.add_tensor(f"blk.0.{name}", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read(tmp_path / "odd.gguf")
    assert (found.architecture, found.experts, found.expert_bytes) == ("grovemoe", 0, 0)


@pytest.mark.parametrize("mass", [0.875, 2.0])
def test_expert_shard_is_known_by_its_header(tmp_path: Path, mass: float) -> None:
    writer = gguf.GGUFWriter(tmp_path / "shard.gguf", "qwen3moe")
    writer.add_expert_count(2)
    writer.add_string("meshnode.shard.model", "ab" * 32)
    writer.add_float32("meshnode.shard.mass", mass)
    writer.add_uint32("meshnode.shard.of", 8)
    writer.add_uint32("meshnode.shard.part", 0)
    writer.add_uint32("meshnode.shard.parts", 4)
    writer.add_key_value(
        "meshnode.shard.experts", [0b101], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if mass > 1:
        with pytest.raises(ModelError, match=r"cannot be used: its meshnode.shard.mass"):
            read(tmp_path / "shard.gguf")
    else:
        assert read(tmp_path / "shard.gguf").shard == Shard(model=Digest("ab" * 32), mass=mass)


def test_published_package_is_a_model(
    model: Path, tmp_path: Path, digests: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(model, tmp_path / "out", projectors=(), digests=digests, job=Job())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.publish("mesh/tiny-layers", tmp_path / "out")
        assert not store.is_missing("hf://mesh/tiny-layers")
        (found,) = select(["hf://mesh/tiny-layers@main"], digests)
        assert [one.id for one in stock((), ["hf://mesh/tiny-layers"], digests).standby] == [
            "tiny-layers"
        ]
    assert found.id == "tiny-layers"
    assert Path(found.path).parent == digests.packages
    with pytest.raises(ModelError, match="is a package: only a model may be one"):
        find("hf://mesh/tiny-layers")


def test_a_digest_leaves_nothing_of_the_file_in_memory(tmp_path: Path, digests: Digests) -> None:
    """A file may be larger than the memory that its user has granted it."""
    path = tmp_path / "large.gguf"
    path.write_bytes(bytes(range(256)) * (1 << 16))
    forget(path)
    if cached(path):
        pytest.skip("this file system keeps files in memory")
    digests.file(path)
    assert cached(path) < 2 << 20
