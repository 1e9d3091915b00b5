from __future__ import annotations

import json
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode_expert_shards.commands.analyze import taking
from meshnode_expert_shards.rankings import place

from p2p_mesh.core.experts.ranking import Ranking, decode_ranking
from tests.plugins.expert_shards.commands.conftest import EXPERTS, TOKENS, USED, Run

SHARES = st.lists(st.integers(0, 100), min_size=1, max_size=32).filter(any)


def test_a_model_is_measured_and_the_ranking_kept(model: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "prompts.txt").write_text("The harbour had been silting up for years.\nWhy?\n")
    words = "analyze", model, "--tokens", "64", "--prompts", tmp_path / "prompts.txt"
    found = json.loads(run(*words, "--json", "--output", tmp_path / "copy.ranking"))
    assert (found["experts"], found["experts_used"], found["tokens"]) == (EXPERTS, USED, 64)
    [first, _] = found["layers"]
    assert sum(one["count"] for one in first["experts"]) == 64 * USED
    assert first["top"] == first["experts"][0]["expert"]
    assert first["experts_for"]["0.50"] <= first["experts_for"]["0.95"] <= EXPERTS
    kept = Path(found["path"]).read_bytes()
    assert kept == (tmp_path / "copy.ranking").read_bytes()
    assert decode_ranking(kept).model == found["digest"]
    more = json.loads(run(*words, "--add", "--json"))
    assert more["tokens"] == 128
    assert [one["top_mass"] for one in more["layers"]] == pytest.approx(
        [one["top_mass"] for one in found["layers"]]
    )


def test_what_was_measured_before_is_shown(
    model: Path, ranked: Ranking, capsys: pytest.CaptureFixture[str], run: Run
) -> None:
    text = run("analyze", model)
    assert f"2 layers with {EXPERTS} experts, {USED} used by a token; {TOKENS} tokens" in text
    assert "expert 0" in text
    assert str(place(ranked.model)) in text
    assert json.loads(run("analyze", model, "--json"))["tokens"] == TOKENS


def test_whoever_asks_again_is_told_how(
    model: Path, ranked: Ranking, capsys: pytest.CaptureFixture[str]
) -> None:
    from p2p_mesh.cli.main import execute

    assert execute(["experts", "analyze", str(model)]) == 0
    assert "--force measures it anew, --add more" in capsys.readouterr().err


def test_options_that_contradict_are_refused(model: Path, run: Run) -> None:
    assert "--force forgets" in run("analyze", model, "--force", "--add", code=2)


@pytest.mark.usefixtures("ranked")
def test_a_copy_that_cannot_be_written_is_said(model: Path, tmp_path: Path, run: Run) -> None:
    text = run("analyze", model, "--output", tmp_path / "none" / "x", code=2)
    assert "cannot be written: its folder is not there" in text


@given(SHARES, st.floats(0.01, 0.99))
def test_just_so_many_experts_take_a_share(counts: list[int], wanted: float) -> None:
    shares = tuple(one / sum(counts) for one in counts)
    found = taking(shares, wanted)
    sums = [0.0, *accumulate(sorted(shares, reverse=True))]
    assert sums[found - 1] < wanted
    assert sums[found] >= wanted or found == len(shares)
