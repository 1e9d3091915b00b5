"""Which file of a node a reference means."""

from pathlib import Path

import pytest

from p2p_mesh.errors import LocalError, ModelError
from p2p_mesh.journal import Journal
from p2p_mesh.node import files as module
from p2p_mesh.node.files import Files
from p2p_mesh.serve.store import Digests
from p2p_mesh.settings import Settings
from p2p_mesh.testing.models import write_model


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(Settings(ctx=64), Digests(tmp_path / "digests.json"), Journal())


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(write_model(tmp_path / "tiny.gguf").path)


async def test_path_is_read_with_the_settings_of_the_node(files: Files, path: str) -> None:
    load = await files.find(path, ())
    assert (load.model.id, load.context) == ("tiny", 64)
    assert list(files) == []
    files.add(load)
    assert await files.find(path, ()) is load
    assert await files.find("tiny", ()) is load


async def test_digest_is_learned_once_and_names_the_file(files: Files, path: str) -> None:
    files.add(await files.find(path, ()))
    assert files.get("0" * 8) is None
    digest = await files.learn(next(iter(files)).model.id)
    assert digest is not None
    assert files.get(digest[:8]) is files.get("tiny")
    assert files.get(digest[:7]) is None
    assert await files.learn(next(iter(files)).model.id) == digest


async def test_second_file_of_a_name_gets_another(files: Files, path: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = str(write_model(tmp_path / "other" / "tiny.gguf", seed=2).path)
    assert (await files.find(other, {"tiny"})).model.id.startswith("tiny@")
    files.add(await files.find(path, ()))
    load = await files.find(other, ())
    assert load.model.digest is not None
    assert load.model.id == f"tiny@{load.model.digest[:8]}"


async def test_missing_file_is_named(files: Files) -> None:
    with pytest.raises(ModelError, match="there is no model 'tiny'"):
        await files.find("tiny", ())


async def test_files_in_mind_are_limited(
    files: Files, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 0)
    with pytest.raises(LocalError, match="keeps 0 model files in mind"):
        files.add(await files.find(path, ()))
