from __future__ import annotations

import json
from pathlib import Path

import pytest
from meshnode_expert_shards.commands.plan import percent

from p2p_mesh.core.experts.ranking import Ranking
from p2p_mesh.testing.models import write_model
from tests.plugins.expert_shards.commands.conftest import Run


def test_every_command_is_explained_with_examples(run: Run) -> None:
    text = run("--help")
    for name in ("analyze", "plan", "split"):
        assert f"\n  {name} " in text
        assert f"meshnode experts {name} qwen3" in run(name, "--help")


@pytest.mark.usefixtures("ranked")
def test_each_node_is_told_with_what_it_keeps(model: Path, run: Run) -> None:
    text = run("plan", model, "--nodes", "2", "--keep", "48", "--min-mass", "0.85")
    assert "2 nodes: each has 48 of 64 experts of every layer" in text
    assert "All of them have a core of 32" in text
    rows = [line.split() for line in text.splitlines() if line[:1].isdigit()]
    assert [row[0] for row in rows] == ["1", "2"]
    assert all(row[1:4] == ["48", "of", "64"] for row in rows)


def test_a_mass_is_never_shown_as_more_than_it_is() -> None:
    assert [percent(one) for one in (0.84999, 0.85, 1.0, 0.0)] == [
        "84.9%",
        "85.0%",
        "100.0%",
        "0.0%",
    ]


@pytest.mark.usefixtures("ranked")
def test_the_plan_is_json_too(model: Path, run: Run) -> None:
    words = "plan", model, "--nodes", "2", "--keep", "48", "--min-mass", "0.85"
    found = json.loads(run(*words, "--json"))
    assert (found["fits"], found["keep"], found["experts"]) == (True, 48, 64)
    assert found["core"]["mass"] + 2 * (1 - found["mass"]) >= 0
    masses = [one["mass"] for one in found["nodes"]]
    assert found["mass"] == min(masses) >= 0.85
    assert all(one["least_mass"] <= one["mass"] for one in found["nodes"])
    assert found["nodes"][0]["size_bytes"] < found["size_bytes"]


@pytest.mark.usefixtures("ranked")
def test_the_fewest_experts_are_taken_that_keep_enough(model: Path, run: Run) -> None:
    found = json.loads(run("plan", model, "--nodes", "4", "--min-mass", "0.85", "--json"))
    assert 0.85 <= found["mass"] < 1
    less = json.loads(
        run("plan", model, "--nodes", "4", "--min-mass", "0.3", "--overlap", "1", "--json")
    )
    assert less["keep"] < found["keep"]
    assert (less["overlap"], found["overlap"]) == (1, 2)


@pytest.mark.usefixtures("ranked")
def test_less_than_the_floor_is_refused_with_advice(model: Path, run: Run) -> None:
    words = "plan", model, "--nodes", "2", "--keep", "48", "--min-mass", "0.99"
    text = run(*words, code=1)
    assert "less than 0.99" in " ".join(text.split())
    found = json.loads(run(*words, "--json", code=1))
    assert not found["fits"]
    assert 0.8 < found["mass"] < 0.99
    assert "less than 0.99" in found["reason"]


@pytest.mark.usefixtures("ranked")
def test_a_number_of_experts_that_cannot_be_is_refused(model: Path, run: Run) -> None:
    text = run("plan", model, "--nodes", "2", "--keep", "3", code=1)
    assert "a part cannot have 3 of 64 experts" in text
    assert "it may have 16, 32, 48, 64" in text


@pytest.mark.usefixtures("ranked")
def test_memory_says_how_many_experts_there_may_be(model: Path, run: Run) -> None:
    large = json.loads(run("plan", model, "--nodes", "2", "--memory", "8", "--json"))
    assert (large["keep"], large["mass"]) == (64, 1.0)
    text = run("plan", model, "--nodes", "2", "--memory", "8", "--memory", "0.01", code=1)
    assert "No expert shard of moe fits: moe needs 0.10 GB" in text


@pytest.mark.usefixtures("ranked")
def test_options_that_contradict_are_refused(model: Path, run: Run) -> None:
    words = "plan", model, "--nodes", "3", "--memory", "8"
    assert "so does --memory" in run(*words, "--keep", "48", code=2)
    assert "--memory is given 2 times, for 3 nodes" in run(*words, "--memory", "9", code=2)


def test_a_model_that_was_not_measured_is_said(model: Path, run: Run) -> None:
    text = " ".join(run("plan", model, "--nodes", "2", code=1).split())
    assert f"run `meshnode experts analyze {model}` first" in text


def test_a_ranking_that_does_not_fit_is_said(model: Path, run: Run, ranked: Ranking) -> None:
    from meshnode_expert_shards.rankings import Ranked, keep
    from msgspec.structs import replace

    keep(Ranked.of(replace(ranked, layers=ranked.layers[:1])))
    assert "analyze the model again" in run("plan", model, "--nodes", "2", code=2)


def test_a_model_without_experts_is_refused(tmp_path: Path, run: Run) -> None:
    write_model(tmp_path / "dense.gguf")
    text = run("plan", tmp_path / "dense.gguf", "--nodes", "2", code=2)
    assert "is no mixture of experts" in text
