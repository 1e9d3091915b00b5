"""From a package to the file of a shard, and what becomes of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from meshnode_expert_shards import building
from meshnode_expert_shards.building import (
    ROUTERS,
    Whole,
    build,
    build_routers,
    clear,
    digest_of,
    held,
    place,
    study,
)

from p2p_mesh.core.experts.known import shard_of
from p2p_mesh.core.experts.layout import Layout
from p2p_mesh.core.experts.shard import ShardRecipe, shard_recipe
from p2p_mesh.core.gguf import Header, read_header
from p2p_mesh.core.names import Digest
from p2p_mesh.core.records import ModelFile
from p2p_mesh.errors import ModelError, Unavailable
from p2p_mesh.serve.package.source import read_source
from p2p_mesh.testing.models import write_model
from tests.plugins.expert_shards.street import Local, Street

CHOSEN = tuple(range(32))


def quiet(_: float) -> None: ...


@pytest.fixture
async def package(street: Street, moe: ModelFile) -> Local:
    return await street.package(moe)


@pytest.fixture
async def whole(package: Local) -> Whole:
    return await study(package)


def recipe(whole: Whole) -> ShardRecipe:
    chosen = [CHOSEN] * len(whole.layout.layers)
    return shard_recipe(whole.header, whole.layout, chosen, model=whole.digest, mass=0.9, parts=2)


def header(path: Path) -> Header:
    data = path.read_bytes()
    return read_header(data, len(data))


async def test_model_is_known_by_the_headers_of_its_parts(
    whole: Whole, moe: ModelFile, experts: Layout
) -> None:
    assert whole.digest == moe.digest
    assert moe.digest is not None
    assert whole.digests == {moe.digest, whole.package.ref.manifest}
    source = read_source(Path(moe.path)).header
    assert {one.name for one in whole.header.tensors} == {one.name for one in source.tensors}
    assert whole.header.metadata == source.metadata
    assert whole.layout.expert_bytes == experts.expert_bytes == moe.expert_bytes
    assert 0 < whole.trunk_bytes < moe.size_bytes - moe.expert_bytes


async def test_only_what_the_shard_takes_is_fetched(whole: Whole, package: Local) -> None:
    before = len(package.asked)
    built = await build(whole, recipe(whole), "x", quiet)
    (asked,) = package.asked[before:]
    metadata = whole.package.manifest.metadata
    taken = sum(size for path, ranges in asked.items() for _, size in ranges
                if path != metadata.path)  # fmt: skip
    assert taken == recipe(whole).size
    assert package.rooms == [built.size_bytes]
    assert built.path == place(whole, "x")
    assert built.path.stat().st_size == built.size_bytes


async def test_shard_has_the_experts_and_says_so(whole: Whole) -> None:
    shares: list[float] = []
    built = await build(whole, recipe(whole), "x", shares.append)
    known = shard_of(header(built.path))
    assert known is not None
    assert (known.shard.model, known.of) == (whole.digest, whole.layout.experts)
    assert known.experts == (CHOSEN,) * len(whole.layout.layers)
    assert (shares[0], shares[-1]) == (building.FETCHED, 1.0)
    assert shares == sorted(shares)


async def test_file_that_is_there_is_used_again(whole: Whole, package: Local) -> None:
    first = await build(whole, recipe(whole), "x", quiet)
    asked = len(package.asked)
    assert await build(whole, recipe(whole), "x", quiet) == first
    assert len(package.asked) == asked


@pytest.mark.parametrize("harm", [
    lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.unlink(),
    lambda path: path.with_suffix(".json").unlink(),
    lambda path: path.with_suffix(".json").write_bytes(b"\xff{"),
])  # fmt: skip
async def test_file_that_is_not_as_it_was_is_built_again(
    whole: Whole, harm: Callable[[Path], object]
) -> None:
    first = await build(whole, recipe(whole), "x", quiet)
    harm(first.path)
    assert await build(whole, recipe(whole), "x", quiet) == first
    assert first.path.stat().st_size == first.size_bytes


async def test_routers_are_a_file_like_a_shard_and_no_weights_of_experts(
    whole: Whole, package: Local
) -> None:
    before = len(package.asked)
    built = await build_routers(whole)
    assert built is not None
    assert built.path == place(whole, ROUTERS)
    found = header(built.path)
    wanted = {f"blk.{number}.ffn_gate_inp.weight" for number in whole.layout.numbers}
    assert {one.name for one in found.tensors} == wanted
    assert not any(key.startswith("tokenizer") for key in found.entries)
    assert len(package.asked) == before + 1
    assert await build_routers(whole) == built
    assert len(package.asked) == before + 1
    clear(whole)
    assert not built.path.exists()


async def test_routers_that_cannot_be_read_are_not_written(whole: Whole) -> None:
    tensors = tuple(
        replace(one, type=26) if "ffn_gate_inp" in one.name else one for one in whole.header.tensors
    )
    odd = replace(whole, header=replace(whole.header, tensors=tensors))
    assert await build_routers(odd) is None


async def test_full_disk_is_told(whole: Whole, package: Local) -> None:
    package.most = 1000
    with pytest.raises(ModelError, match="--max-disk"):
        await build(whole, recipe(whole), "x", quiet)


async def test_folder_that_cannot_be_written_is_named(whole: Whole, cache: Path) -> None:
    await trio.Path(cache).mkdir(parents=True)
    await trio.Path(cache / "stages").write_text("in the way")
    with pytest.raises(ModelError, match="cannot be written"):
        await build(whole, recipe(whole), "x", quiet)


async def test_who_gives_up_leaves_no_file(whole: Whole) -> None:
    def leave(share: float) -> None:
        if share > building.FETCHED:
            scope.cancel()

    with trio.CancelScope() as scope:
        await build(whole, recipe(whole), "x", leave)
    assert scope.cancelled_caught
    assert not [one for one in place(whole, "x").parent.iterdir() if one.suffix == ".gguf"]


async def test_shards_that_nobody_uses_go(whole: Whole) -> None:
    old = await build(whole, recipe(whole), "old", quiet)
    used = await build(whole, recipe(whole), "used", quiet)
    stage = old.path.with_name("0-4-abc.gguf")
    stage.write_bytes(b"of a stage")
    with held(used.path):
        clear(whole)
        assert not old.path.exists()
        assert not old.path.with_suffix(".json").exists()
        assert used.path.exists()
    assert stage.exists()
    clear(whole)
    assert not used.path.exists()
    with pytest.raises(Unavailable, match="cannot be read"), held(used.path):
        pass


async def test_model_without_experts_is_refused(street: Street, tmp_path: Path) -> None:
    package = await street.package(write_model(tmp_path / "dense.gguf"))
    with pytest.raises(ModelError, match="no mixture of experts"):
        await study(package)


class Longer(Local):
    """Its parts read as what they are not."""

    def __init__(self, inner: Local, change: Callable[[bytes], bytes]) -> None:
        super().__init__(inner._package)
        self._change = change

    async def fetch_ranges(
        self,
        wanted: Mapping[str, Sequence[tuple[int, int]]],
        progress: Callable[[float], None] = lambda _: None,
    ) -> Mapping[str, Callable[[int, int], bytes]]:
        reads = await super().fetch_ranges(wanted, progress)

        def changed(read: Callable[[int, int], bytes]) -> Callable[[int, int], bytes]:
            return lambda offset, length: self._change(read(offset, length))

        return {path: changed(read) for path, read in reads.items()}


async def test_header_that_is_long_is_fetched_in_more_goes(
    package: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "HEADER", 64)
    found = await study(package)
    assert len(package.asked) > 1
    assert found.layout.experts == 48


@pytest.mark.parametrize("change", [lambda data: b"nonsense" + data, lambda data: b""])
async def test_part_that_is_no_gguf_is_refused(
    package: Local, change: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "MOST_HEADER", 1)
    with pytest.raises(ModelError, match="gguf of"):
        await study(Longer(package, change))


def test_package_that_does_not_say_what_it_was_made_of_is_known_by_its_manifest() -> None:
    package: Any = type("P", (), {})()
    package.ref = type("R", (), {"manifest": Digest("f" * 64)})()
    package.manifest = type("M", (), {"source": type("S", (), {"sha256": ""})()})()
    assert digest_of(package) == "f" * 64
    package.manifest.source.sha256 = "x" * 64
    assert digest_of(package) == "f" * 64
    package.manifest.source.sha256 = "a" * 64
    assert digest_of(package) == "a" * 64
