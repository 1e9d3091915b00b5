"""A package of which all, some, or no artifacts are here."""

import json
import shutil
from pathlib import Path

import gguf
import pytest

from p2p_mesh.core.package import EMBEDDINGS, MANIFEST, METADATA, OUTPUT, layer_path
from p2p_mesh.errors import ModelError, RequestError, Unavailable
from p2p_mesh.serve.package.local import LocalPackage
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.testing.packages import publish_elsewhere, split_model


@pytest.fixture
async def partial(packages: Packages, built: Path) -> LocalPackage:
    """Of which layer 1 is missing."""
    (built / layer_path(1)).unlink()
    return await packages.opened(built)


async def test_virtual_package_has_everything(packages: Packages, model: Path) -> None:
    found = await packages.opened(model)
    paths = [one.path for one in found.manifest.artifacts]
    assert (found.is_virtual, found.missing(paths)) == (True, ())
    assert await found.sources(paths) == (model,)
    assert set(found.blobs()) == {
        *(one.sha256 for one in found.manifest.artifacts), found.ref.manifest, found.ref.pieces
    }  # fmt: skip
    keys = gguf.GGUFReader(found.metadata).fields
    assert "tokenizer.ggml.tokens" in keys


async def test_sources_of_a_split_model_are_those_that_are_needed(
    packages: Packages, model: Path
) -> None:
    first = split_model(model)
    found = await packages.opened(first)
    sources = await found.sources([layer_path(1)])
    assert 0 < len(sources) < 3
    names = {one.name for path in sources for one in gguf.GGUFReader(path).tensors}
    assert names >= {one.name for one in gguf.GGUFReader(model).tensors if "blk.1." in one.name}


async def test_package_without_its_list_of_pieces_checks_whole_artifacts(
    partial: LocalPackage,
) -> None:
    artifact = partial.manifest.artifact(layer_path(1))
    size = artifact.artifact_bytes
    assert not await (await partial.incoming(artifact.path)).put(0, bytes(size))
    partial.forget_pieces()
    assert (partial.pieces, partial.ref.pieces) == (None, "")
    assert partial.ref.pieces not in partial.blobs()
    incoming = await partial.incoming(artifact.path)
    assert await incoming.put(0, bytes(size))
    assert not await incoming.finish()


async def test_virtual_and_written_artifacts_are_alike(
    packages: Packages, model: Path, built: Path
) -> None:
    found = await packages.opened(model)
    for one in found.manifest.artifacts:
        data = (built / one.path).read_bytes()
        assert await found.read(one.path, 0, one.artifact_bytes) == data
        assert await found.read(one.path, 7, 9) == data[7:16]
    with pytest.raises(RequestError):
        await found.read(OUTPUT, 0, 1 << 40)


async def test_model_that_was_changed_is_no_source(packages: Packages, model: Path) -> None:
    found = await packages.opened(model)
    spoil(model)
    with pytest.raises(ModelError, match="was changed"):
        await found.sources([OUTPUT])


async def test_missing_artifact_is_named(partial: LocalPackage) -> None:
    missing = layer_path(1)
    assert [one.path for one in partial.missing([OUTPUT, missing])] == [missing]
    assert not partial.has(missing)
    for call in (partial.read(missing, 0, 1), partial.sources([missing])):
        with pytest.raises(Unavailable, match=r"layer-00001\.gguf of random is not here"):
            await call
    with pytest.raises(ModelError, match="is not here yet"):
        partial.place(missing)
    with pytest.raises(ModelError, match="no artifact 'x'"):
        partial.has("x")
    assert partial.manifest.layers[1].sha256 not in partial.blobs()


async def test_what_comes_in_goes_into_the_cache(
    partial: LocalPackage, packages: Packages, model: Path, built: Path
) -> None:
    path = layer_path(1)
    data = await Packages(packages.cache / "x", packages._digests).opened(model)
    incoming = await partial.incoming(path)
    assert await partial.incoming(path) is incoming
    assert await incoming.put(0, await data.read(path, 0, incoming.artifact.artifact_bytes))
    assert await incoming.finish()
    assert await partial.sources([path]) == (partial.folder / path,)
    assert not (built / path).exists()
    (partial.folder / path).unlink()
    assert (await partial.incoming(path)).missing() == (0,)


async def test_whole_file_is_adopted_without_a_copy(
    partial: LocalPackage, packages: Packages, model: Path, tmp_path: Path
) -> None:
    path = layer_path(1)
    whole = await Packages(packages.cache / "x", packages._digests).opened(model)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(await whole.read(path, 0, whole.manifest.layers[1].artifact_bytes))
    with pytest.raises(ModelError, match="its SHA-256 differs"):
        await partial.adopt(path, built_output(partial))
    await partial.adopt(path, elsewhere)
    assert (partial.folder / path).is_symlink()
    assert partial.has(path)
    elsewhere.unlink()
    assert not partial.has(path)
    with pytest.raises(ModelError, match="cannot be used: No such file"):
        await partial.adopt(path, elsewhere)


def built_output(package: LocalPackage) -> Path:
    return package.place(OUTPUT)


async def test_changed_artifact_of_the_user_is_refused_and_stays(
    packages: Packages, built: Path
) -> None:
    found = await packages.opened(built)
    spoil(built / OUTPUT)
    with pytest.raises(ModelError, match=r"output\.gguf is not usable: its SHA-256"):
        await found.sources([OUTPUT])
    assert (built / OUTPUT).exists()


async def test_changed_artifact_of_the_cache_is_removed(partial: LocalPackage, built: Path) -> None:
    target = partial.folder / layer_path(1)
    target.parent.mkdir(parents=True)
    target.write_bytes(bytes(partial.manifest.layers[1].artifact_bytes))
    with pytest.raises(ModelError, match="not usable"):
        await partial.sources([layer_path(1)])
    assert not target.exists()


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


async def test_file_of_another_length_is_missing(packages: Packages, built: Path) -> None:
    found = await packages.opened(built)
    with (built / OUTPUT).open("ab") as file:
        file.write(b"x")
    assert not found.has(OUTPUT)


async def test_package_of_another_writer_is_a_source(
    packages: Packages, model: Path, tmp_path: Path
) -> None:
    folder = publish_elsewhere(model, tmp_path / "elsewhere")
    found = await packages.opened(folder)
    assert (found.pieces, found.ref.pieces, found.pieces_bytes) == (None, "", b"")
    paths = [one.path for one in found.manifest.artifacts]
    assert len(await found.sources(paths)) == 5
    assert found.metadata == folder / METADATA


async def test_header_is_checked_before_a_file_is_used(
    packages: Packages, model: Path, tmp_path: Path
) -> None:
    """The hash is right, and the file is not what its place in the manifest says."""
    folder = publish_elsewhere(model, tmp_path / "elsewhere")
    manifest = json.loads((folder / MANIFEST).read_bytes())
    shutil.copy(folder / EMBEDDINGS, folder / "other.gguf")
    manifest["layers"][0] |= {**manifest["shared"]["embeddings"], "path": "other.gguf"}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    found = await packages.opened(folder)
    with pytest.raises(ModelError, match=r"'token_embd\.weight', which belongs elsewhere"):
        await found.sources(["other.gguf"])
