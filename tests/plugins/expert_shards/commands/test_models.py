from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from meshnode_expert_shards.commands.models import opened

from p2p_mesh.core.experts.ranking import Ranking
from p2p_mesh.errors import ModelError
from p2p_mesh.serve import store
from p2p_mesh.serve.package.blob import Job
from p2p_mesh.serve.package.build import build
from tests.plugins.expert_shards.commands.conftest import EXPERTS


def packaged(model: Path, folder: Path) -> Path:
    digests = store.Digests(folder.with_name("built.json"))
    build(model, folder, projectors=(), digests=digests, job=Job(lambda _: None))
    return folder


def test_a_file_is_opened_with_its_experts(model: Path) -> None:
    found = opened(str(model))
    assert (found.layout.experts, len(found.sources)) == (EXPERTS, 1)
    assert found.file(lambda _: None) == model
    assert found.known() is None


def test_a_ranking_is_found_by_the_digest(model: Path, ranked: Ranking) -> None:
    assert opened(str(model)).ranking() == ranked


def test_a_package_has_the_digest_of_its_file(model: Path, tmp_path: Path, ranked: Ranking) -> None:
    found = opened(str(packaged(model, tmp_path / "package")))
    assert found.ranking() == ranked
    assert {one.name for one in found.header.tensors} == {
        one.name for one in opened(str(model)).header.tensors
    }


def test_a_package_is_put_together_to_be_run(model: Path, tmp_path: Path) -> None:
    folder = packaged(model, tmp_path / "package")
    whole = opened(str(folder)).file(lambda _: None)
    assert {one.name: one.size for one in opened(str(whole)).header.tensors} == {
        one.name: one.size for one in opened(str(model)).header.tensors
    }


def test_what_cannot_be_opened_is_said(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ModelError, match="there is no model"):
        opened(str(tmp_path / "none.gguf"))
    with pytest.raises(ModelError, match="is on a hub"):
        opened("hf://a/b")
    shutil.copy(model, tmp_path / "short.gguf")
    with (tmp_path / "short.gguf").open("r+b") as file:
        file.truncate(100_000)
    with pytest.raises(ModelError, match="truncated"):
        opened(str(tmp_path / "short.gguf"))
