"""What is served, and for how long."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from p2p_mesh.core.names import Digest
from p2p_mesh.core.package import PackageRef
from p2p_mesh.core.records import ModelFile
from p2p_mesh.errors import Unavailable
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.node.library import Library
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.serve.store import Digests
from p2p_mesh.settings import Settings
from p2p_mesh.testing.members import until
from p2p_mesh.testing.models import write_model


class Desk:
    """A library, and what it sees."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.entries: list[Entry] = []
        self.loaded: list[ModelFile] = []
        self.is_alone = False
        self.changes = 0
        self.packages = Packages(folder / "packages", Digests(folder / "digests.json"))
        self.library = Library(
            Settings(**settings),
            self.packages,
            loaded=lambda: self.loaded,
            is_alone=lambda: self.is_alone,
            journal=Journal(self.entries.append),
            changed=self._change,
        )

    def _change(self) -> None:
        self.changes += 1


class User:
    def __init__(self, package: Any) -> None:
        self.package = package


@pytest.fixture
def model(tmp_path: Path) -> ModelFile:
    return write_model(tmp_path / "tiny.gguf")


async def test_empty_library_serves_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert desk.library.announced() == ()
    assert desk.library.held(Digest("a" * 64)) == ()
    assert desk.library.find(Digest("a" * 64)) is None


async def test_every_file_of_a_package_is_found_and_read(tmp_path: Path, model: ModelFile) -> None:
    desk = Desk(tmp_path)
    package = await desk.packages.opened(model.path)
    user = User(package)
    desk.library.add(user)
    assert desk.library.announced() == (package.ref.manifest,)
    held = desk.library.held(package.ref.manifest)
    assert len(held) == len(package.manifest.artifacts) + 2
    for digest in held:
        file = desk.library.find(digest)
        assert file is not None
        assert len(await file.read(0, file.size)) == file.size
    manifest = desk.library.find(package.ref.manifest)
    assert manifest is not None
    assert await manifest.read(0, manifest.size) == package.manifest_bytes


async def test_package_is_served_as_long_as_it_is_used(tmp_path: Path, model: ModelFile) -> None:
    desk = Desk(tmp_path)
    users = [User(await desk.packages.opened(model.path)) for _ in range(2)]
    for user in users:
        desk.library.add(user)
    del user
    users.pop()
    assert desk.library.announced()
    users.pop()
    assert desk.library.announced() == ()


async def test_changed_file_is_served_no_more(tmp_path: Path, model: ModelFile) -> None:
    desk = Desk(tmp_path)
    package = await desk.packages.opened(model.path)
    user = User(package)
    desk.library.add(user)
    layer = package.manifest.layers[0].sha256
    file = desk.library.find(layer)
    assert file is not None
    write_model(tmp_path / "tiny.gguf", seed=9)
    with pytest.raises(Unavailable, match="was changed"):
        await file.read(0, file.size)
    assert desk.library.find(layer) is None
    assert desk.library.find(package.ref.manifest) is not None


async def test_two_lists_of_the_pieces_of_a_package_are_served(
    tmp_path: Path, model: ModelFile
) -> None:
    desk, other = Desk(tmp_path), Desk(tmp_path / "other")
    package = await desk.packages.opened(model.path)
    pieces = package.pieces_bytes.replace(package.pieces_bytes[-70:-10], b"0" * 60)
    ref = PackageRef(manifest=package.ref.manifest, pieces=hashlib.sha256(pieces).hexdigest())
    users = [
        User(package),
        User(await other.packages.add(ref, package.manifest_bytes, pieces)),
    ]
    for user in users:
        desk.library.add(user)
    assert desk.library.announced() == (package.ref.manifest,)
    for digest in (package.ref.pieces, ref.pieces):
        assert digest in desk.library.held(package.ref.manifest)
        assert desk.library.find(Digest(digest)) is not None


async def test_loaded_models_are_served_where_there_is_somebody(
    tmp_path: Path, model: ModelFile
) -> None:
    desk = Desk(tmp_path)
    desk.loaded, desk.is_alone = [model], True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.library.run)
        await trio.testing.wait_all_tasks_blocked()
        assert desk.library.announced() == ()
        desk.is_alone = False
        desk.library.wake()
        await until(desk.library.announced)
        assert desk.changes == 1
        desk.loaded = []
        desk.library.wake()
        await until(lambda: not desk.library.announced())
        nursery.cancel_scope.cancel()


async def test_nothing_is_opened_where_it_is_off(tmp_path: Path, model: ModelFile) -> None:
    desk = Desk(tmp_path, artifacts="off", share=(model.path,))
    desk.loaded = [model]
    await desk.library.run()
    assert desk.packages.held() == ()


async def test_shared_files_are_served_and_bad_ones_told_of(
    tmp_path: Path, model: ModelFile
) -> None:
    desk = Desk(tmp_path, share=("/nowhere.gguf", model.path))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.library.run)
        await until(desk.library.announced)
        nursery.cancel_scope.cancel()
    assert [one.event for one in desk.entries] == ["share_failed"]
