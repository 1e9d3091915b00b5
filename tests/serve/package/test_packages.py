"""The packages of a machine: opened once, remembered, found again, and got from strangers."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import trio

from p2p_mesh.core.names import Digest
from p2p_mesh.core.package import MANIFEST, PIECES, PackageRef, layer_path
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.package.folder import INDEX, ORIGIN
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.serve.store import Digests
from p2p_mesh.testing.models import write_model
from p2p_mesh.testing.packages import publish_elsewhere, split_model


def other(packages: Packages, digests: Digests) -> Packages:
    """The same cache, in another process."""
    return Packages(packages.cache, digests)


async def test_file_and_folder_are_one_package(
    packages: Packages, model: Path, built: Path
) -> None:
    folder = await packages.opened(built)
    assert not folder.is_virtual
    virtual = await packages.opened(str(model))
    assert virtual.ref == folder.ref
    assert (virtual.manifest_bytes, virtual.pieces_bytes) == (
        folder.manifest_bytes, folder.pieces_bytes,
    )  # fmt: skip
    assert packages.held() == (folder,)  # it lacks nothing that the other has


async def test_fuller_package_takes_the_place_of_another(
    packages: Packages, model: Path, built: Path
) -> None:
    (built / layer_path(0)).unlink()
    await packages.opened(built)
    virtual = await packages.opened(model)
    assert packages.held() == (virtual,)
    assert await packages.opened(built) is virtual


async def test_hashes_of_a_file_are_remembered(
    packages: Packages, digests: Digests, model: Path
) -> None:
    seen: list[float] = []
    first = await packages.opened(model, seen.append)
    assert seen[-1] == 1.0
    seen.clear()
    again = await other(packages, digests).opened(model, seen.append)
    assert (again.ref, seen) == (first.ref, [])


async def test_file_is_read_once_for_all_who_want_it(packages: Packages, model: Path) -> None:
    seen: list[list[float]] = [[] for _ in range(4)]
    async with trio.open_nursery() as nursery:
        for one in seen:
            nursery.start_soon(packages.opened, model, one.append)
    assert len([one for one in seen if one]) == 1
    assert len(packages.held()) == 1


async def test_name_of_a_file_does_not_matter(
    packages: Packages, digests: Digests, model: Path, tmp_path: Path
) -> None:
    first = await packages.opened(model)
    moved, copy = tmp_path / "moved.gguf", tmp_path / "copy.gguf"
    os.rename(model, moved)
    copy.write_bytes(moved.read_bytes())
    for path in (moved, copy):
        assert (await other(packages, digests).opened(path)).ref == first.ref


async def test_split_model_is_one_package(packages: Packages, model: Path) -> None:
    found = await packages.opened(split_model(model))
    whole = await packages.opened(model)
    assert found.manifest.layers == whole.manifest.layers
    assert len(found.manifest.source.files) == 3


async def test_changed_file_is_another_package(
    packages: Packages, digests: Digests, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    write_model(path, seed=1)
    first = await packages.opened(path)
    write_model(path, seed=2)
    os.utime(path, ns=(1, 1))
    assert (await other(packages, digests).opened(path)).ref != first.ref


@pytest.mark.parametrize("spoil", ["index", "manifest", "gone"])
async def test_damaged_memory_costs_a_reading_and_no_more(
    packages: Packages, digests: Digests, model: Path, spoil: str
) -> None:
    first = await packages.opened(model)
    if spoil == "index":
        (packages.cache / INDEX).write_text("{")
    elif spoil == "manifest":
        (first.folder / MANIFEST).write_text("{")
    else:
        (first.folder / MANIFEST).unlink()
    again = other(packages, digests)
    assert (await again.opened(model)).ref == first.ref


async def test_package_is_found_by_its_reference(
    packages: Packages, digests: Digests, model: Path
) -> None:
    first = await packages.opened(model)
    assert await packages.find(first.ref) is first
    again = await other(packages, digests).find(first.ref)
    assert again is not None
    assert again.is_virtual
    assert await packages.find(PackageRef(manifest=Digest("0" * 64))) is None


async def test_package_is_found_without_its_file_too(
    packages: Packages, digests: Digests, model: Path
) -> None:
    first = await packages.opened(model)
    os.unlink(model)
    again = await other(packages, digests).find(first.ref)
    assert again is not None
    assert again.missing([layer_path(0)])
    (first.folder / MANIFEST).write_text("{")
    assert await other(packages, digests).find(first.ref) is None


async def test_package_comes_from_a_stranger(
    packages: Packages, digests: Digests, model: Path, tmp_path: Path
) -> None:
    theirs = await packages.opened(model)
    ref = PackageRef(manifest=theirs.ref.manifest, pieces=theirs.ref.pieces, hub="hf://a/b@c")
    mine = Packages(tmp_path / "mine", digests)
    found = await mine.add(ref, theirs.manifest_bytes, theirs.pieces_bytes)
    assert (found.ref, found.missing([layer_path(0)])[0].path) == (ref, layer_path(0))
    assert await mine.find(ref) is found
    again = await Packages(tmp_path / "mine", digests).find(ref)
    assert again is not None
    assert again.ref == ref


async def test_what_a_stranger_sends_is_checked(packages: Packages, built: Path) -> None:
    manifest, pieces = ((built / one).read_bytes() for one in (MANIFEST, PIECES))
    found = await packages.opened(built)
    with pytest.raises(ModelError, match="the manifest has the SHA-256"):
        await packages.add(found.ref, manifest + b" ", pieces)
    with pytest.raises(ModelError, match="the list of its pieces has not"):
        await packages.add(found.ref, manifest, pieces + b" ")


async def test_pieces_are_added_to_a_package_without(
    packages: Packages, built: Path, tmp_path: Path, digests: Digests
) -> None:
    pieces = (built / PIECES).read_bytes()
    (built / PIECES).unlink()
    without = await packages.opened(built)
    mine = Packages(tmp_path / "mine", digests)
    assert (await mine.add(without.ref, without.manifest_bytes)).pieces is None
    ref = (await Packages(tmp_path / "x", digests).opened(built)).ref
    whole = PackageRef(manifest=ref.manifest, pieces=hashlib.sha256(pieces).hexdigest())
    assert (await mine.add(whole, without.manifest_bytes, pieces)).pieces is not None


async def test_list_of_pieces_from_a_stranger_changes_nothing_that_is_whole(
    packages: Packages, digests: Digests, model: Path
) -> None:
    mine = await packages.opened(model)
    pieces = mine.pieces_bytes.replace(mine.pieces_bytes[-70:-10], b"0" * 60)
    ref = PackageRef(manifest=mine.ref.manifest, pieces=hashlib.sha256(pieces).hexdigest())
    assert await packages.add(ref, mine.manifest_bytes, pieces) is mine
    again = await other(packages, digests).find(mine.ref)
    assert again is not None
    assert (again.ref, again.is_virtual) == (mine.ref, True)


async def test_package_that_is_fetched_goes_by_the_newest_list_of_pieces(
    packages: Packages, digests: Digests, model: Path, tmp_path: Path
) -> None:
    theirs = await packages.opened(model)
    pieces = theirs.pieces_bytes.replace(theirs.pieces_bytes[-70:-10], b"0" * 60)
    wrong = PackageRef(manifest=theirs.ref.manifest, pieces=hashlib.sha256(pieces).hexdigest())
    mine = Packages(tmp_path / "mine", digests)
    first = await mine.add(wrong, theirs.manifest_bytes, pieces)
    assert await mine.add(wrong, theirs.manifest_bytes) is first
    second = await mine.add(theirs.ref, theirs.manifest_bytes, theirs.pieces_bytes)
    assert second.ref == theirs.ref
    assert mine.held() == (second,)


async def test_newer_list_of_pieces_takes_nothing_from_a_package(
    packages: Packages, digests: Digests, built: Path, tmp_path: Path
) -> None:
    (built / layer_path(1)).unlink()
    theirs = await packages.opened(built)
    pieces = theirs.pieces_bytes.replace(theirs.pieces_bytes[-70:-10], b"0" * 60)
    other_list = PackageRef(manifest=theirs.ref.manifest, pieces=hashlib.sha256(pieces).hexdigest())
    found = await packages.add(other_list, theirs.manifest_bytes, pieces)
    assert (found.ref, found.home) == (other_list, built)
    mine = Packages(tmp_path / "mine", digests)
    published = PackageRef(manifest=theirs.ref.manifest, pieces=theirs.ref.pieces, hub="hf://a/b@c")
    await mine.add(published, theirs.manifest_bytes, theirs.pieces_bytes)
    assert (await mine.add(other_list, theirs.manifest_bytes, pieces)).ref.hub == "hf://a/b@c"


async def test_adding_forgets_no_file(packages: Packages, digests: Digests, model: Path) -> None:
    theirs = await packages.opened(model)
    ref = PackageRef(manifest=theirs.ref.manifest, pieces=theirs.ref.pieces, hub="hf://a/b@c")
    await other(packages, digests).add(ref, theirs.manifest_bytes, theirs.pieces_bytes)
    again = await other(packages, digests).find(ref)
    assert again is not None
    assert again.is_virtual


async def test_own_folder_in_the_cache_is_opened_as_such(
    packages: Packages, digests: Digests, model: Path
) -> None:
    first = await packages.opened(model)
    again = await other(packages, digests).opened(first.folder)
    assert again.home is None
    assert again.missing([layer_path(0)])


@pytest.mark.parametrize(("name", "reason"), [
    ("none.gguf", "No such file"), ("bad.gguf", "cannot be used: it is no GGUF"),
    ("empty.gguf", "it is empty"), ("folder", "cannot be read: No such file"),
])  # fmt: skip
async def test_what_is_no_package_is_refused(
    packages: Packages, tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"no model")
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match=reason):
        await packages.opened(tmp_path / name)


async def test_folder_with_a_bad_manifest_is_named(packages: Packages, built: Path) -> None:
    text = json.loads((built / MANIFEST).read_bytes())
    text["shared"]["output"]["path"] = "../output.gguf"
    (built / MANIFEST).write_text(json.dumps(text))
    with pytest.raises(ModelError, match=r"built cannot be used: .*no safe relative path"):
        await packages.opened(built)


async def test_cancelled_opening_ends(packages: Packages, tmp_path: Path) -> None:
    path = Path(write_model(tmp_path / "m.gguf").path)
    with trio.move_on_after(0):
        await packages.opened(path)
    assert packages.held() == ()


async def test_cache_that_cannot_be_written_is_named(
    tmp_path: Path, digests: Digests, model: Path
) -> None:
    (tmp_path / "packages").write_text("in the way")
    with pytest.raises(ModelError, match="cannot be written"):
        await Packages(tmp_path / "packages", digests).opened(model)


async def test_usage_counts_what_was_fetched(
    packages: Packages, model: Path, tmp_path: Path
) -> None:
    found = await packages.opened(publish_elsewhere(model, tmp_path / "elsewhere"))
    assert await packages.usage() == 0
    found.stages.mkdir(parents=True)
    (found.stages / "0-1.gguf").write_bytes(bytes(1000))
    (found.folder / "layers").mkdir(parents=True)
    (found.folder / "layers" / "a.gguf").write_bytes(bytes(10))
    (found.folder / ORIGIN).write_text("{}")
    assert await packages.usage() == 1010
    (tmp_path / "hub").write_bytes(bytes(500))
    for name in ("b.gguf", "c.gguf"):
        (found.folder / "layers" / name).symlink_to(tmp_path / "hub")
    (found.folder / "layers" / "d.gguf").symlink_to(tmp_path / "gone")
    (found.folder / "layers" / "e").symlink_to(tmp_path)
    assert await packages.usage() == 1510
