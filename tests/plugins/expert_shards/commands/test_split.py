from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.library import start
from meshnode_llama_cpp.model import Model

from p2p_mesh.core.experts.ranking import Ranking
from p2p_mesh.serve import store
from tests.plugins.expert_shards.commands.conftest import Run

pytestmark = pytest.mark.usefixtures("ranked")

TWO = "--nodes", "2", "--keep", "48", "--min-mass", "0.85"


def computes(path: Path) -> bool:
    """Whether llama.cpp loads it and computes with it."""
    start()
    model = Model(str(path), name="shard", progress=lambda _: None)
    context = Context(model, Plan(context=32, slots=1, threads=1, rows=8))
    context.rows.clear()
    row = context.rows.add(0, 0, [5, 6, 7], outputs=1)
    context.decode()
    return bool(np.isfinite(context.logits(row)).all())


def test_every_node_gets_a_file_that_knows_what_it_is(
    model: Path, tmp_path: Path, run: Run, ranked: Ranking
) -> None:
    out = tmp_path / "out"
    found = json.loads(run("split", model, *TWO, "--output", out, "--json"))
    assert [one["node"] for one in found] == [1, 2]
    for one in found:
        path = Path(one["path"])
        assert path == out / f"moe.shard-{one['node']}-of-2.gguf"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == one["sha256"]
        shard = store.read(path)
        assert (shard.size_bytes, shard.experts) == (one["size_bytes"], 48)
        assert shard.shard is not None
        assert shard.shard.model == ranked.model
        assert shard.shard.mass == pytest.approx(one["mass"])
        assert computes(path)


def test_the_file_of_one_node_is_that_of_all(model: Path, tmp_path: Path, run: Run) -> None:
    words = "split", model, *TWO, "--output"
    text = run(*words, tmp_path / "all")
    assert "with 48 of 64 experts and" in text
    run(*words, tmp_path / "one", "--node", "2")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["moe.shard-2-of-2.gguf"]
    one, same = (tmp_path / name / "moe.shard-2-of-2.gguf" for name in ("one", "all"))
    assert one.read_bytes() == same.read_bytes()


def test_a_package_gives_the_same_experts(model: Path, tmp_path: Path, run: Run) -> None:
    from p2p_mesh.cli.main import execute

    package = tmp_path / "package"
    assert execute(["package", "build", str(model), "--out", str(package)]) == 0
    run("plan", package, *TWO)  # empties what was said
    words = "split", *TWO, "--node", "1", "--json", "--output", tmp_path
    found = [json.loads(run(*words, one))[0] for one in (model, package)]
    assert found[0]["mass"] == found[1]["mass"]
    assert found[0]["size_bytes"] == found[1]["size_bytes"]
    assert computes(Path(found[1]["path"]))
    next((package / "layers").iterdir()).unlink()
    assert "a package is wanted with all of its files" in run(*words, package, "--force", code=2)


def test_nothing_is_written_over_by_mistake(model: Path, tmp_path: Path, run: Run) -> None:
    words = "split", model, *TWO, "--output", tmp_path, "--node", "1"
    run(*words)
    assert "is there already; --force writes over it" in run(*words, code=2)
    run(*words, "--force")
    model.rename(tmp_path / "moe.shard-1-of-2.gguf")
    text = run("split", tmp_path / "moe.shard-1-of-2.gguf", *words[2:], code=0)
    assert "moe.shard-1-of-2.shard-1-of-2.gguf" in text


def test_less_than_the_floor_is_not_written(model: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    words = "split", model, "--nodes", "2", "--keep", "48", "--min-mass", "0.99", "--output", out
    assert "less than 0.99" in " ".join(run(*words, code=1).split())
    assert not out.exists()


def test_a_node_that_there_is_not_is_refused(model: Path, run: Run) -> None:
    for node in ("0", "3", "one", "-1"):
        text = run("split", model, "--nodes", "2", "--node", node, code=2)
        assert "is neither `all` nor one of 1 to 2" in text


def test_a_shard_is_not_split_again(model: Path, tmp_path: Path, run: Run) -> None:
    run("split", model, *TWO, "--output", tmp_path, "--node", "1")
    text = run("split", tmp_path / "moe.shard-1-of-2.gguf", "--nodes", "2", code=2)
    assert "is an expert shard, which lacks experts" in text


def test_what_cannot_be_written_is_said(
    model: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    words = "split", model, *TWO, "--output"
    assert "cannot be written" in run(*words, tmp_path / "file" / "x", code=1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 0))
    assert "GB free: free some" in run(*words, tmp_path, code=2)
