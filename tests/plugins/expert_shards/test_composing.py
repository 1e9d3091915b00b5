"""The file of an expert shard, written from ranges of the model's files."""

from __future__ import annotations

import hashlib
import mmap
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from meshnode_expert_shards import composing
from meshnode_expert_shards.composing import Source, compose, size_of
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.library import start
from meshnode_llama_cpp.model import Model

from p2p_mesh.core.experts.known import shard_of
from p2p_mesh.core.experts.layout import Layout, layout
from p2p_mesh.core.experts.shard import ShardRecipe, shard_recipe
from p2p_mesh.core.gguf import Header, read_header
from p2p_mesh.core.names import Digest
from p2p_mesh.errors import ModelError
from p2p_mesh.testing.models import write_moe

MODEL = Digest("ab" * 32)
EXPERTS = 32
ALL = tuple(range(EXPERTS))
SOME = tuple(range(1, EXPERTS, 2))


def header(path: Path) -> Header:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return read_header(data, len(data))


def source(path: Path) -> Source:
    data = path.read_bytes()
    return Source(header(path), lambda offset, size: data[offset : offset + size])


def laid_out(of: Header) -> Layout:
    found = layout(of)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("models") / "moe.gguf"
    write_moe(path, experts=EXPERTS)
    return path


def recipe(path: Path, experts: tuple[int, ...]) -> ShardRecipe:
    whole = header(path)
    own = [experts] * len(laid_out(whole).layers)
    return shard_recipe(whole, laid_out(whole), own, model=MODEL, mass=0.75)


def shard(path: Path, experts: tuple[int, ...], target: Path) -> Path:
    one = source(path)
    return compose(recipe(path, experts), keys=one, sources=[one], target=target).path


def read(path: Path) -> tuple[dict[str, Any], dict[str, gguf.ReaderTensor]]:
    reader = gguf.GGUFReader(path)
    values = {name: field.contents() for name, field in reader.fields.items()
              if not name.startswith("GGUF.")}  # fmt: skip
    return values, {one.name: one for one in reader.tensors}


def logits(path: Path) -> list[bytes]:
    start()
    model = Model(str(path), name="tiny", progress=lambda _: None)
    context = Context(model, Plan(context=64, slots=1, threads=1, rows=16))
    found = []
    for position, tokens in ((0, [5, 6, 7, 8, 9]), (5, [10]), (6, [11])):
        context.rows.clear()
        row = context.rows.add(0, position, tokens, outputs=1)
        context.decode()
        found.append(context.logits(row).tobytes())
    return found


def test_a_shard_with_all_experts_computes_as_the_whole_model_does(
    model: Path, tmp_path: Path
) -> None:
    assert logits(shard(model, ALL, tmp_path / "all.gguf")) == logits(model)


def test_a_shard_with_some_experts_computes(model: Path, tmp_path: Path) -> None:
    found = [np.frombuffer(one, np.float32)
             for one in logits(shard(model, SOME, tmp_path / "some.gguf"))]  # fmt: skip
    assert all(np.isfinite(one).all() for one in found)


def test_it_has_the_trunk_and_its_experts_to_the_last_bit(model: Path, tmp_path: Path) -> None:
    _, whole = read(model)
    _, found = read(shard(model, SOME, tmp_path / "some.gguf"))
    assert list(found) == list(whole)
    for name, one in found.items():
        assert one.tensor_type == whole[name].tensor_type
        experts = "exps" in name or "gate_inp" in name
        wanted = whole[name].data[list(SOME)] if experts else whole[name].data
        assert np.array_equal(one.data, wanted), name


def test_its_keys_are_those_of_the_model_but_for_what_it_is(model: Path, tmp_path: Path) -> None:
    path = shard(model, SOME, tmp_path / "some.gguf")
    (whole, _), (found, _) = read(model), read(path)
    assert found.pop("qwen3moe.expert_count") == len(SOME)
    assert whole.pop("qwen3moe.expert_count") == EXPERTS
    own = {name: found.pop(name) for name in list(found) if name.startswith("meshnode.shard.")}
    assert found == whole
    assert own["meshnode.shard.model"] == MODEL
    known = shard_of(header(path))
    assert known is not None
    assert (known.shard.mass, known.of, known.experts[0]) == (0.75, EXPERTS, SOME)


def test_size_and_hash_are_those_of_the_file(model: Path, tmp_path: Path) -> None:
    one = source(model)
    made = compose(recipe(model, SOME), keys=one, sources=[one], target=tmp_path / "a.gguf")
    data = made.path.read_bytes()
    assert made.sha256 == hashlib.sha256(data).hexdigest()
    assert made.size_bytes == len(data)
    assert size_of(recipe(model, SOME), keys=one, sources=[one]) == len(data)


def test_only_what_the_recipe_says_is_read(model: Path, tmp_path: Path) -> None:
    whole, asked = source(model), list[tuple[int, int]]()

    def read_range(offset: int, size: int) -> bytes:
        asked.append((offset, size))
        return whole.read(offset, size)

    one = Source(whole.header, read_range)
    wanted = recipe(model, SOME)
    compose(wanted, keys=one, sources=[one], target=tmp_path / "a.gguf")
    ranges = [*wanted.ranges(whole.header), *((start, end - start) for start, end in
              whole.header.entries.values())]  # fmt: skip
    assert all(any(start <= offset and offset + size <= start + length
                   for start, length in ranges) for offset, size in asked)  # fmt: skip
    assert sum(size for _, size in asked) <= sum(size for _, size in ranges)


def test_the_model_may_lie_in_several_files(model: Path, tmp_path: Path) -> None:
    whole = source(model)
    tensors = whole.header.tensors
    halves = [
        Source(Header(whole.header.metadata, part), whole.read)
        for part in (tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :])
    ]
    made = compose(recipe(model, SOME), keys=whole, sources=halves, target=tmp_path / "a.gguf")
    one = compose(recipe(model, SOME), keys=whole, sources=[whole], target=tmp_path / "b.gguf")
    assert made.sha256 == one.sha256


def test_it_tells_how_much_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composing, "CHUNK", 4096)
    shares: list[float] = []
    one = source(model)
    compose(recipe(model, SOME), keys=one, sources=[one], target=tmp_path / "a.gguf",
            progress=shares.append)  # fmt: skip
    assert shares == sorted(set(shares))
    assert shares[-1] == 1
    assert len(shares) > 20


def test_a_file_that_is_given_up_is_removed(model: Path, tmp_path: Path) -> None:
    class EnoughError(Exception): ...

    def give_up(_: float) -> None:
        assert list(tmp_path.iterdir())
        raise EnoughError

    one = source(model)
    with pytest.raises(EnoughError):
        compose(recipe(model, SOME), keys=one, sources=[one], target=tmp_path / "a.gguf",
                progress=give_up)  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_said_before_anything_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 100, 0))
    with pytest.raises(ModelError, match=r"its disk has 0\.00 GB free: free some"):
        shard(model, SOME, tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_a_missing_tensor_is_named(model: Path, tmp_path: Path) -> None:
    whole = source(model)
    kept = tuple(one for one in whole.header.tensors if one.name != "output.weight")
    partial = Source(Header(whole.header.metadata, kept), whole.read)
    with pytest.raises(ModelError, match=r"none of the files has the tensor 'output\.weight'"):
        compose(recipe(model, SOME), keys=whole, sources=[partial], target=tmp_path / "a.gguf")


def test_weights_of_an_unknown_type_are_not_copied(model: Path, tmp_path: Path) -> None:
    whole = source(model)
    first, *rest = whole.header.tensors
    strange = Source(Header({}, (replace(first, size=0, type=99), *rest)), whole.read)
    with pytest.raises(ModelError, match="is of type 99, which is not known"):
        compose(recipe(model, SOME), keys=whole, sources=[strange], target=tmp_path / "a.gguf")


def test_an_alignment_that_cannot_be_is_refused(model: Path, tmp_path: Path) -> None:
    whole = source(model)
    header = Header({"general.alignment": 12}, whole.header.tensors, whole.header.entries)
    odd = Source(header, whole.read)
    with pytest.raises(ModelError, match="claims an alignment of 12"):
        compose(recipe(model, SOME), keys=odd, sources=[whole], target=tmp_path / "a.gguf")


def test_a_file_of_another_model_is_found_out(model: Path, tmp_path: Path) -> None:
    write_moe(tmp_path / "other.gguf", experts=16)
    other, target = source(tmp_path / "other.gguf"), tmp_path / "a.gguf"
    with pytest.raises(ModelError, match="is another than the model's header says"):
        compose(recipe(model, SOME), keys=source(model), sources=[other], target=target)


def test_a_file_that_ends_too_early_is_found_out(model: Path, tmp_path: Path) -> None:
    whole = source(model)
    short = Source(whole.header, lambda offset, size: whole.read(offset, size)[:-1])
    with pytest.raises(ModelError, match="a file of the model ends at"):
        compose(recipe(model, SOME), keys=whole, sources=[short], target=tmp_path / "a.gguf")
    with pytest.raises(ModelError, match="ends inside them"):
        compose(recipe(model, SOME), keys=short, sources=[whole], target=tmp_path / "a.gguf")
