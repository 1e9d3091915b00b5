"""A package on a hub: at first its description comes, and the rest when it is needed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2p_mesh.core.package import MANIFEST, METADATA, PIECES
from p2p_mesh.core.reference import HubName
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.hub import Hub
from p2p_mesh.serve.package import published
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.testing.hub import LocalHub, serve_hub
from p2p_mesh.testing.packages import publish_elsewhere

NAME = HubName("mesh/tiny-layers")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, built: Path) -> Iterator[LocalHub]:
    with serve_hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        found.publish(NAME.repo, built)
        yield found


@pytest.fixture
def ours(tmp_path: Path) -> Hub:
    return Hub(tmp_path / "hub")


def test_description_comes_at_first(
    hub: LocalHub, ours: Hub, packages: Packages, built: Path
) -> None:
    folder = published.fetch(NAME, packages.cache, ours)
    assert folder.parent == packages.cache
    for name in (MANIFEST, PIECES, METADATA):
        assert (folder / name).read_bytes() == (built / name).read_bytes()
    got = {path.rpartition("/main/")[2] for method, path in hub.asked if method == "GET"}
    assert not [one for one in got if "layers/layer" in one or "output" in one]


async def test_rest_comes_when_it_is_needed(hub: LocalHub, ours: Hub, packages: Packages) -> None:
    folder = published.fetch(NAME, packages.cache, ours)
    package = await packages.opened(folder)
    name = await ours.resolve(NAME)
    assert package.ref.hub == str(name)
    paths = [one.path for one in package.manifest.artifacts]
    for missing in package.missing(paths):
        await package.adopt(missing.path, await ours.download(name, missing.path))
    assert len(await package.sources(paths)) == len(paths)


async def test_package_without_pieces_can_be_had(
    hub: LocalHub, ours: Hub, packages: Packages, model: Path, tmp_path: Path
) -> None:
    hub.publish("mesh/other", publish_elsewhere(model, tmp_path / "elsewhere"))
    folder = published.fetch(HubName("mesh/other"), packages.cache, ours)
    assert (await packages.opened(folder)).ref.pieces == ""


def test_bad_package_is_named(hub: LocalHub, ours: Hub, packages: Packages, built: Path) -> None:
    text = json.loads((built / MANIFEST).read_bytes())
    (built / MANIFEST).write_text(json.dumps({**text, "format": "zip"}))
    with pytest.raises(ModelError, match=r"hf://mesh/tiny-layers@\w+ cannot be used: its format"):
        published.fetch(NAME, packages.cache, ours)


def test_pieces_of_another_package_are_refused(
    hub: LocalHub, ours: Hub, packages: Packages, built: Path
) -> None:
    text = json.loads((built / MANIFEST).read_bytes())
    (built / MANIFEST).write_text(json.dumps(text))
    with pytest.raises(ModelError, match="belongs to another manifest"):
        published.fetch(NAME, packages.cache, ours)


def test_cache_that_cannot_be_written_is_named(hub: LocalHub, ours: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match="cannot be written"):
        published.fetch(NAME, tmp_path / "file", ours)
