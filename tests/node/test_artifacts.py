"""Packages between nodes: what is served, to whom, and how what is missing gets here."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from p2p_mesh.core.inventory import Inventory, read
from p2p_mesh.core.manifest import write_pieces
from p2p_mesh.core.names import Digest
from p2p_mesh.core.package import PIECE, PIECES, PackageRef, Pieces
from p2p_mesh.core.records import ModelFile
from p2p_mesh.errors import ModelError, Unavailable
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.node.artifacts import Artifacts
from p2p_mesh.serve.hub import Hub
from p2p_mesh.serve.package.blob import Job
from p2p_mesh.serve.package.build import build
from p2p_mesh.serve.package.local import LocalPackage
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.serve.store import Digests
from p2p_mesh.settings import Settings
from p2p_mesh.testing.hub import serve_hub
from p2p_mesh.testing.members import Mesh, Node, opened, until
from p2p_mesh.testing.models import Shape, write_model
from p2p_mesh.testing.network import MemoryNetwork


class Site:
    """A node's network, its packages, and what it has loaded."""

    def __init__(self, node: Node, folder: Path, **settings: Any) -> None:
        self.node = node
        self.inventory = Inventory()
        self.entries: list[Entry] = []
        self.loaded: list[ModelFile] = []
        self.files: list[ModelFile] = []
        self.digests = Digests(folder / "digests.json")
        self.packages = Packages(folder / "packages", self.digests)
        self.artifacts = Artifacts(
            Settings(**settings),
            self.packages,
            Hub(folder / "hub"),
            inventory=self.inventory,
            files=lambda: self.files,
            loaded=lambda: self.loaded,
            rng=Random(1),
            journal=Journal(self.entries.append),
            changed=lambda: None,
        )

    def events(self) -> list[str]:
        return [one.event for one in self.entries]


Sites = tuple[Site, Site]


@pytest.fixture
def model(tmp_path: Path) -> ModelFile:
    return write_model(tmp_path / "tiny.gguf")


@asynccontextmanager
async def sites(folder: Path, first: Any = None, second: Any = None) -> AsyncIterator[Sites]:
    """Two nodes that are connected. No virtual clock: what they do to files is done in threads."""
    wire, mesh = MemoryNetwork(0.0), Mesh()
    one = Site(mesh.node(), folder / "one", **(first or {}))
    other = Site(mesh.node(), folder / "other", **(second or {}))
    async with (
        opened(one.node, transport=wire.transport()),
        opened(other.node, transport=wire.transport(), seeds=one.node.seeds()),
        trio.open_nursery() as nursery,
    ):
        for site in (one, other):
            site.artifacts.attach(site.node.net)
            nursery.start_soon(site.artifacts.library.run)
        await until(lambda: one.node.came and other.node.came)
        yield one, other
        nursery.cancel_scope.cancel()


async def test_package_comes_from_a_peer_by_its_reference(tmp_path: Path, model: ModelFile) -> None:
    async with sites(tmp_path) as (one, other):
        theirs = await one.artifacts.package(model)
        ours = await other.artifacts.package(theirs.ref)
        assert ours.manifest == theirs.manifest
        assert ours.metadata.read_bytes()[:4] == b"GGUF"
        wanted = [ours.manifest.layers[1].path, ours.manifest.output.path]
        shares: list[float] = []
        paths = await ours.fetch(wanted, shares.append)
        assert len(paths) == 2
        assert shares[-1] == 1.0
        assert not ours.package.missing([ours.manifest.metadata.path, *wanted])
        assert ours.package.missing([ours.manifest.layers[0].path])
        assert other.events().count("artifacts_fetched") == 2
        assert other.artifacts.status() == []


async def test_what_was_fetched_is_served_on(tmp_path: Path, model: ModelFile) -> None:
    async with sites(tmp_path) as (one, other):
        theirs = await one.artifacts.package(model)
        ours = await other.artifacts.package(theirs.ref)
        held = other.artifacts.library.held(ours.ref.manifest)
        assert set(held) == {ours.ref.manifest, ours.ref.pieces, ours.manifest.metadata.sha256}
        assert other.artifacts.library.announced() == (ours.ref.manifest,)


async def test_nothing_is_served_that_nobody_uses(tmp_path: Path, model: ModelFile) -> None:
    async with sites(tmp_path) as (one, other):
        used = await one.artifacts.package(model)
        ref = used.ref
        assert one.artifacts.library.find(Digest(used.manifest.output.sha256)) is not None
        del used
        assert one.artifacts.library.announced() == ()
        assert one.artifacts.library.held(ref.manifest) == ()
        assert one.artifacts.library.find(ref.manifest) is None
        with pytest.raises(Unavailable, match="nobody of this mesh serves it"):
            await other.artifacts.package(ref)


async def test_shared_package_is_served_though_nothing_is_loaded(
    tmp_path: Path, model: ModelFile
) -> None:
    async with sites(tmp_path, {"share": (model.path,)}) as (one, other):
        await until(one.artifacts.library.announced)
        (manifest,) = one.artifacts.library.announced()
        (package,) = one.packages.held()
        assert package.ref.manifest == manifest
        found = await other.artifacts.package(package.ref)
        assert found.manifest == package.manifest


async def test_share_that_is_no_package_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"nonsense")
    async with sites(tmp_path, {"share": (str(tmp_path / "bad.gguf"), "/nowhere")}) as (one, _):
        await until(lambda: one.events().count("share_failed") == 2)
        assert one.artifacts.library.announced() == ()


async def test_loaded_model_is_served_once_there_is_somebody(
    tmp_path: Path, model: ModelFile
) -> None:
    async with sites(tmp_path) as (one, other):
        one.loaded.append(model)
        one.artifacts.library.wake()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert one.artifacts.library.announced() == ()
        for site in (one, other):
            envelope = await site.node.announce()
            one.inventory.apply(read(envelope, site.node.mesh_key, site.node.now()))
        one.artifacts.library.wake()
        await until(one.artifacts.library.announced)
        one.loaded.clear()
        one.artifacts.library.wake()
        await until(lambda: not one.artifacts.library.announced())


async def test_loaded_file_that_is_no_package_is_looked_at_once(
    tmp_path: Path, model: ModelFile
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"nonsense")
    async with sites(tmp_path) as (one, other):
        one.loaded.append(model)
        for site in (one, other):
            envelope = await site.node.announce()
            one.inventory.apply(read(envelope, site.node.mesh_key, site.node.now()))
        for _ in range(3):
            one.artifacts.library.wake()
            await until(lambda: "no_package" in one.events())
        assert one.events().count("no_package") == 1


async def test_nothing_is_served_or_asked_where_it_is_off(tmp_path: Path, model: ModelFile) -> None:
    async with sites(tmp_path, {"artifacts": "off", "share": (model.path,)}) as (one, other):
        theirs = await one.artifacts.package(model)
        assert one.artifacts.library.announced() == ()
        with pytest.raises(Unavailable):
            await other.artifacts.package(theirs.ref)
    async with sites(tmp_path / "again", None, {"artifacts": "off"}) as (one, other):
        theirs = await one.artifacts.package(model)
        with pytest.raises(Unavailable, match="nobody"):
            await other.artifacts.package(theirs.ref)


async def test_own_file_of_the_same_content_is_taken(tmp_path: Path, model: ModelFile) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes((tmp_path / "tiny.gguf").read_bytes())
    async with sites(tmp_path) as (one, other):
        theirs = await one.artifacts.package(model)
        digest = await other.digests.of(copy)
        other.files.append(replace(model, path=str(copy), digest=digest))
        ours = await other.artifacts.package(theirs.ref)
        assert await ours.fetch([theirs.manifest.layers[0].path]) == (copy,)
        assert "artifacts_fetching" not in other.events()


async def test_piece_that_is_spoilt_is_not_taken(tmp_path: Path, model: ModelFile) -> None:
    async with sites(tmp_path) as (one, other):
        theirs = await one.artifacts.package(model)
        ours = await other.artifacts.package(theirs.ref)
        layer = theirs.manifest.layers[0]
        blob = theirs.package.blob(layer.path)
        assert blob is not None
        spoilt = blob.read(0, blob.size - 1) + b"x"
        find = one.artifacts.library.find
        lie: Any = type("Lie", (), {"size": len(spoilt), "read": lambda *_: _give(spoilt)})()
        lying: Any = one.artifacts.library
        lying.find = lambda sha: lie if sha == layer.sha256 else find(sha)
        with pytest.raises(Unavailable, match="published nowhere"):
            await ours.fetch([layer.path])
        assert "artifacts_bad_peer" in other.events()
        assert "artifacts_failed" in other.events()
        assert other.node.events("bad_peer")
        assert ours.package.missing([layer.path])


@pytest.mark.parametrize(
    ("settings", "is_own"),
    [
        ({}, False),
        ({"fetch_allow": ("hf://test/*",)}, True),
    ],
)
async def test_hub_that_only_a_peer_names_is_not_asked(
    tmp_path: Path, model: ModelFile, settings: dict[str, Any], is_own: bool
) -> None:
    async with sites(tmp_path, None, settings) as (one, other):
        theirs = await one.artifacts.package(model)
        hub = f"hf://test/tiny@{'0' * 40}"
        ours = await other.artifacts.package(replace(theirs.ref, hub=hub))
        assert ours.ref.hub == (hub if is_own else "")


async def test_hub_that_sends_too_much_is_not_asked_for_it(
    tmp_path: Path, model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "built"
    digests = Digests(tmp_path / "digests.json")
    build(Path(model.path), folder, projectors=(), digests=digests, job=Job())
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        async with sites(tmp_path, None, {"fetch_allow": ("hf://test/*",)}) as (one, other):
            theirs = await one.packages.opened(folder)
            layer = theirs.manifest.layers[0].path
            published = tmp_path / "published"
            (published / layer).parent.mkdir(parents=True)
            (published / layer).write_bytes((folder / layer).read_bytes() + b"x")
            commit = hub.publish("test/tiny", published)
            ref = replace(theirs.ref, hub=f"hf://test/tiny@{commit}")
            package = await other.packages.add(ref, theirs.manifest_bytes, theirs.pieces_bytes)
            with pytest.raises(ModelError, match=r"bytes, and \d+ would be right"):
                await other.artifacts.fetch(package, [layer])
            assert {method for method, path in hub.asked if layer in path} == {"HEAD"}


def false_list(package: LocalPackage, *paths: str, hashed: bytes = b"lies") -> bytes:
    """A list of pieces of a package as a liar names it: those of `paths` are of other bytes."""
    assert package.pieces is not None
    lies = {path: (hashlib.sha256(hashed).hexdigest(),) for path in paths}
    hashes = {**package.pieces.hashes, **lies}
    return write_pieces(Pieces(package.ref.manifest, hashes))


async def poison(site: Site, package: LocalPackage, pieces: bytes) -> PackageRef:
    """Has a site know a package by a false list of pieces."""
    ref = PackageRef(manifest=package.ref.manifest, pieces=hashlib.sha256(pieces).hexdigest())
    await site.packages.add(ref, package.manifest_bytes, pieces)
    return ref


async def test_false_list_of_pieces_gives_way_to_the_one_that_is_named(
    tmp_path: Path, model: ModelFile
) -> None:
    async with sites(tmp_path) as (one, other):
        theirs = await one.artifacts.package(model)
        layer = theirs.manifest.layers[0].path
        await poison(other, theirs.package, false_list(theirs.package, layer))
        ours = await other.artifacts.package(theirs.ref)
        assert ours.ref == theirs.ref
        await ours.fetch([layer])
        assert "artifacts_bad_peer" not in other.events()


async def test_list_of_pieces_by_which_all_is_wrong_is_forgotten(
    tmp_path: Path, model: ModelFile
) -> None:
    async with sites(tmp_path) as (one, other):
        theirs = await one.artifacts.package(model)
        layer = theirs.manifest.layers[0].path
        ref = await poison(other, theirs.package, false_list(theirs.package, layer))
        ours = await other.artifacts.package(ref)
        assert await ours.fetch([layer])
        assert "artifacts_bad_peer" in other.events()
        assert ours.ref.pieces == ""


async def test_list_of_pieces_that_fits_a_false_file_is_forgotten(
    tmp_path: Path, model: ModelFile
) -> None:
    async with sites(tmp_path) as (one, other):
        theirs = await one.artifacts.package(model)
        layers = theirs.manifest.layers[:2]
        assert layers[0].artifact_bytes == layers[1].artifact_bytes
        spoilt = bytes(layers[0].artifact_bytes)
        pieces = false_list(theirs.package, *(layer.path for layer in layers), hashed=spoilt)
        ours = await other.artifacts.package(await poison(other, theirs.package, pieces))
        find = one.artifacts.library.find
        lie: Any = type("Lie", (), {"size": len(spoilt), "read": lambda *_: _give(spoilt)})()
        lies: dict[str, Any] = {layer.sha256: lie for layer in layers}
        lying: Any = one.artifacts.library
        lying.find = lambda sha: lies.pop(sha, None) or find(sha)
        paths = await ours.fetch([layer.path for layer in layers])
        assert not lies
        assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] == [
            layer.sha256 for layer in layers
        ]


async def test_hub_gives_what_a_liar_has_without_a_list_of_pieces(
    tmp_path: Path, model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "built"
    digests = Digests(tmp_path / "digests.json")
    build(Path(model.path), folder, projectors=(), digests=digests, job=Job())
    (folder / PIECES).unlink()
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        commit = hub.publish("test/tiny", folder)
        async with sites(tmp_path, {"share": (str(folder),)}) as (one, other):
            await until(one.artifacts.library.announced)
            theirs = await one.packages.opened(folder)
            ref = PackageRef(manifest=theirs.ref.manifest, hub=f"hf://test/tiny@{commit}")
            await other.packages.add(ref, theirs.manifest_bytes)
            ours = await other.artifacts.package(ref)
            layer = ours.manifest.layers[0]
            spoilt = bytes(layer.artifact_bytes)
            lie: Any = type("Lie", (), {"size": len(spoilt), "read": lambda *_: _give(spoilt)})()
            find = one.artifacts.library.find
            lying: Any = one.artifacts.library
            lying.find = lambda sha: lie if sha == layer.sha256 else find(sha)
            (path,) = await ours.fetch([layer.path])
            assert path.read_bytes() == (folder / layer.path).read_bytes()


async def _give(data: bytes) -> bytes:
    return data


async def test_file_that_changed_is_not_sent(tmp_path: Path, model: ModelFile) -> None:
    async with sites(tmp_path) as (one, other):
        theirs = await one.artifacts.package(model)
        ours = await other.artifacts.package(theirs.ref)
        write_model(Path(model.path), seed=7)
        with pytest.raises(Unavailable, match="published nowhere"):
            await ours.fetch([theirs.manifest.layers[0].path])


async def test_disk_has_a_limit(tmp_path: Path, model: ModelFile) -> None:
    async with sites(tmp_path, None, {"max_disk": 0.000_04}) as (one, other):
        theirs = await one.artifacts.package(model)
        ours = await other.artifacts.package(theirs.ref)
        with pytest.raises(ModelError, match="raise --max-disk"):
            await ours.fetch([one.path for one in theirs.manifest.artifacts])


async def test_file_that_is_composed_counts_too(tmp_path: Path, model: ModelFile) -> None:
    async with sites(tmp_path) as (one, other):
        theirs = await one.artifacts.package(model)
        ours = await other.artifacts.package(theirs.ref)
        await ours.fetch([file.path for file in theirs.manifest.artifacts])
        taken, size = await other.packages.usage(), theirs.manifest.total_bytes
        other.artifacts._settings = Settings(max_disk=(taken + size - 1) / 1e9)
        with pytest.raises(ModelError, match="raise --max-disk"):
            await ours.whole()
        other.artifacts._settings = Settings(max_disk=(taken + size + 1) / 1e9)
        async with ours.room(2):
            with pytest.raises(ModelError, match="raise --max-disk"):
                await ours.whole()
        path = await ours.whole()
        other.artifacts._settings = Settings(max_disk=1e-6)
        assert await ours.whole() == path
        assert await theirs.whole() == Path(model.path)


@pytest.mark.parametrize(
    ("allow", "is_right"),
    [
        (lambda ref, manifest: manifest.model_id, True),
        (lambda ref, manifest: manifest.model_id[:2] + "*", True),
        (lambda ref, manifest: ref.manifest[:8], True),
        (lambda ref, manifest: manifest.source.sha256, True),
        (lambda ref, manifest: ref.manifest[:7], False),
        (lambda ref, manifest: "other", False),
    ],
)
async def test_demand_alone_fetches_what_is_allowed(
    tmp_path: Path, model: ModelFile, allow: Callable[[Any, Any], str], is_right: bool
) -> None:
    async with sites(tmp_path) as (one, other):
        theirs = await one.artifacts.package(model)
        other.artifacts._settings = Settings(fetch_allow=(allow(theirs.ref, theirs.manifest),))
        if is_right:
            await other.artifacts.package(theirs.ref, on_demand=True)
        else:
            with pytest.raises(ModelError, match="--fetch-allow"):
                await other.artifacts.package(theirs.ref, on_demand=True)
            await other.artifacts.package(theirs.ref)


async def test_two_who_want_the_same_fetch_it_once(tmp_path: Path, model: ModelFile) -> None:
    async with sites(tmp_path) as (one, other):
        theirs = await one.artifacts.package(model)
        ours = await other.artifacts.package(theirs.ref)
        before = other.events().count("artifacts_fetched")
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(ours.fetch, [theirs.manifest.layers[0].path])
        assert other.events().count("artifacts_fetched") == before + 1


async def test_hub_gives_what_no_peer_has(
    tmp_path: Path, model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "built"
    digests = Digests(tmp_path / "digests.json")
    build(Path(model.path), folder, projectors=(), digests=digests, job=Job())
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        commit = hub.publish("test/tiny", folder)
        async with sites(tmp_path) as (one, other):
            theirs = await one.packages.opened(folder)
            ref = PackageRef(
                manifest=theirs.ref.manifest, pieces=theirs.ref.pieces,
                hub=f"hf://test/tiny@{commit}",
            )  # fmt: skip
            await other.packages.add(ref, theirs.manifest_bytes, theirs.pieces_bytes)
            ours = await other.artifacts.package(ref)
            layer = ours.manifest.layers[0].path
            (path,) = await ours.fetch([layer])
            assert path.read_bytes() == (folder / layer).read_bytes()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    """One whose layer has four pieces."""
    shape = Shape(layers=1, width=128, feed=32_768)
    return write_model(tmp_path_factory.mktemp("large") / "large.gguf", shape=shape)


async def test_ranges_come_without_the_rest_of_their_file(tmp_path: Path, large: ModelFile) -> None:
    async with sites(tmp_path) as (one, other):
        theirs = await one.artifacts.package(large)
        ours = await other.artifacts.package(theirs.ref)
        layer, output = theirs.manifest.layers[0], theirs.manifest.output
        assert layer.artifact_bytes > 3 * PIECE
        true = theirs.package.reader(layer.path)
        shares: list[float] = []
        wanted = {layer.path: [(9, 20), (3 * PIECE, 7)], output.path: [(0, 4)]}
        read = await ours.fetch_ranges(wanted, shares.append)
        assert read[layer.path](9, 20) == true(9, 20)
        assert read[layer.path](3 * PIECE, 7) == true(3 * PIECE, 7)
        assert read[output.path](0, 4) == b"GGUF"
        with pytest.raises(ModelError, match="not here"):
            read[layer.path](PIECE, 1)
        assert shares[-1] == 1.0
        assert await other.packages.usage() < layer.artifact_bytes
        assert ours.package.missing([layer.path]) == (layer,)
        assert ours.package.missing([output.path]) == ()
        # Once more, nothing comes; and the whole later takes only what is missing.
        before = other.events().count("artifacts_fetching")
        await ours.fetch_ranges(wanted)
        assert other.events().count("artifacts_fetching") == before
        await ours.fetch([layer.path])
        assert read[layer.path](PIECE, 9) == true(PIECE, 9)


async def test_ranges_of_an_own_file_are_read_in_place(tmp_path: Path, large: ModelFile) -> None:
    async with sites(tmp_path) as (one, _):
        package = await one.artifacts.package(large)
        taken = await one.packages.usage()
        layer = package.manifest.layers[0].path
        read = await package.fetch_ranges({layer: [(0, 4)]})
        assert read[layer](0, 4) == b"GGUF"
        assert await one.packages.usage() == taken
        assert "artifacts_fetching" not in one.events()


async def test_ranges_beyond_an_artifact_are_refused(tmp_path: Path, large: ModelFile) -> None:
    async with sites(tmp_path) as (one, other):
        theirs = await one.artifacts.package(large)
        ours = await other.artifacts.package(theirs.ref)
        layer = ours.manifest.layers[0]
        with pytest.raises(ModelError, match="it has"):
            await ours.fetch_ranges({layer.path: [(layer.artifact_bytes, 1)]})


async def test_ranges_count_for_the_disk_by_their_pieces(tmp_path: Path, large: ModelFile) -> None:
    async with sites(tmp_path) as (one, other):
        theirs = await one.artifacts.package(large)
        ours = await other.artifacts.package(theirs.ref)
        layer, taken = ours.manifest.layers[0].path, await other.packages.usage()
        other.artifacts._settings = Settings(max_disk=(taken + 2 * PIECE) / 1e9)
        with pytest.raises(ModelError, match="raise --max-disk"):
            await ours.fetch_ranges({layer: [(0, 2 * PIECE + 1)]})
        assert await ours.fetch_ranges({layer: [(0, 2 * PIECE)]})


async def test_ranges_of_a_package_without_a_list_of_pieces_come_with_the_rest(
    tmp_path: Path, model: ModelFile
) -> None:
    async with sites(tmp_path) as (one, other):
        theirs = await one.artifacts.package(model)
        await other.packages.add(PackageRef(manifest=theirs.ref.manifest),
                                 theirs.package.manifest_bytes)  # fmt: skip
        ours = await other.artifacts.package(PackageRef(manifest=theirs.ref.manifest))
        layer = ours.manifest.layers[0].path
        assert (await ours.fetch_ranges({layer: [(0, 4)]}))[layer](0, 4) == b"GGUF"
        assert not ours.package.missing([layer])


async def test_ranges_that_only_demand_wants_need_a_word_of_the_user(
    tmp_path: Path, model: ModelFile
) -> None:
    async with sites(tmp_path) as (one, other):
        theirs = await one.artifacts.package(model)
        ours = await other.artifacts.package(theirs.ref)
        ours._on_demand = True
        with pytest.raises(ModelError, match="fetch-allow"):
            await ours.fetch_ranges({ours.manifest.layers[0].path: [(0, 4)]})


async def test_ranges_that_no_peer_sends_are_not_to_be_had(
    tmp_path: Path, model: ModelFile
) -> None:
    async with sites(tmp_path) as (one, other):
        theirs = await one.artifacts.package(model)
        ours = await other.artifacts.package(theirs.ref)
        lying: Any = one.artifacts.library
        lying.find = lambda sha: None
        with pytest.raises(Unavailable, match="published nowhere"):
            await ours.fetch_ranges({ours.manifest.layers[0].path: [(0, 4)]})


async def test_long_fetch_is_told_of(
    tmp_path: Path, model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sites(tmp_path) as (one, other):
        theirs = await one.artifacts.package(model)
        ours = await other.artifacts.package(theirs.ref)
        monkeypatch.setattr("p2p_mesh.node.transfers.REPORT", 0.0)
        monkeypatch.setattr("p2p_mesh.node.transfers.LOOK", 0.01)
        find = one.artifacts.library.find
        go_on = trio.Event()

        async def wait(offset: int, length: int) -> bytes:
            await go_on.wait()
            raise Unavailable("no more")

        slow: Any = type("Slow", (), {"size": 10, "read": staticmethod(wait)})()
        layer = theirs.manifest.layers[0]
        lying: Any = one.artifacts.library
        lying.find = lambda sha: slow if sha == layer.sha256 else find(sha)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.fetch, [layer.path])
            await until(lambda: "artifacts_progress" in other.events())
            (status,) = other.artifacts.status()
            assert (status["model"], status["done_bytes"]) == (theirs.manifest.model_id, 0)
            assert status["total_bytes"] == layer.artifact_bytes
            nursery.cancel_scope.cancel()
        assert other.artifacts.status() == []
