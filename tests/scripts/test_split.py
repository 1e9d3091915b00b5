"""What the benches of stages decide for themselves: known answers, where answers part, figures."""

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts/benches"))

import grown  # type: ignore[import-not-found]
import split  # type: ignore[import-not-found]
import splitproof  # type: ignore[import-not-found]
import told  # type: ignore[import-not-found]

from p2p_mesh.testing.models import Shape, write_model

SHAPE = Shape(layers=2)


def data(path: Path, name: str) -> Any:
    return next(one.data for one in gguf.GGUFReader(path).tensors if one.name == name)


def test_all_text_is_one_ring() -> None:
    order = told.followers([2, 3, 1, 6, 1, 1])
    token, ring = 2, []
    for _ in range(3):
        token = order[token]
        ring.append(token)
    assert sorted(ring) == [2, 4, 5]


def test_the_output_of_a_follower_is_the_embedding_before_it(tmp_path: Path) -> None:
    plain, known = tmp_path / "plain.gguf", tmp_path / "known.gguf"
    write_model(plain, shape=SHAPE)
    told.tell(plain, known)
    kinds = gguf.GGUFReader(plain).fields["tokenizer.ggml.token_type"].contents()
    embeddings, output = data(known, "token_embd.weight"), data(known, "output.weight")
    for token, follower in told.followers(kinds).items():
        assert (output[follower] == embeddings[token]).all()


def test_known_answers_leave_layers_silent(tmp_path: Path) -> None:
    plain, known = tmp_path / "plain.gguf", tmp_path / "known.gguf"
    write_model(plain, shape=SHAPE)
    told.tell(plain, known)
    assert not data(known, "blk.1.ffn_down.weight").any()
    assert (data(known, "blk.1.ffn_up.weight") == data(plain, "blk.1.ffn_up.weight")).all()


def test_experts_grow_and_others_do_not() -> None:
    random = np.random.default_rng(0)

    def size(name: str, *shape: int) -> tuple[int, ...]:
        tensor = type("Tensor", (), {"name": name, "data": np.ones(shape, np.float32)})
        found: tuple[int, ...] = grown._grown(tensor, 2, random).shape
        return found

    assert size("blk.0.ffn_up_exps.weight", 2, 4, 4) == (8, 4, 4)
    assert size("blk.0.ffn_gate_inp.weight", 2, 4) == (8, 4)
    assert size("blk.0.ffn_gate_inp_shexp.weight", 2) == (2,)
    assert size("blk.0.attn_q.weight", 2, 4) == (2, 4)
    assert size("token_embd.weight", 128, 4) == (512, 4)


def test_answers_part_at_a_token() -> None:
    alone, other = [[("a", -1.0), ("b", -2.0)]], [[("a", -1.0), ("c", -2.0)]]
    assert splitproof.difference(alone, alone) == ""
    assert splitproof.difference(alone, other).startswith("answer 0, token 1: ('b', -2.0)")


def test_likelihoods_may_be_a_little_apart() -> None:
    alone, other = [[("a", -1.0)], [("b", -2.0)]], [[("a", -1.0)], [("b", -2.5)]]
    assert splitproof.difference(alone, other) == ""
    assert splitproof.distance(alone, other) == 0.5


def test_stages_of_a_proof_are_equal(tmp_path: Path) -> None:
    write_model(tmp_path / "model.gguf", shape=Shape(layers=7))
    assert splitproof.cuts(tmp_path / "model.gguf") == (0, 2, 4, 7)


def test_an_overhead_is_what_is_left_of_a_token() -> None:
    rounds = [{"compute": 0.010, "split": 0.0315 + late, "trip": 0.020 + late}
              for late in (0.0, 0.001)]  # fmt: skip
    figure = split.overhead(20, 1, rounds)
    assert (figure.name, figure.holds) == ("overhead_ms_rtt20", True)
    assert figure.value == pytest.approx(1.5)


def test_guesses_share_a_round_trip() -> None:
    figure = split.overhead(20, 4, [{"compute": 0.010, "split": 0.0175, "trip": 0.020}])
    assert (figure.name, figure.holds) == ("draft_overhead_ms_rtt20", False)
    assert figure.value == pytest.approx(2.5)


def test_total_is_wanted_of_sixteen_streams_alone() -> None:
    rounds = [{"most": 100.0, "solo": 70.0, "split": 95.0}]
    eight, sixteen = (
        {one.name: one for one in split._stream_figures(streams, rounds)} for streams in (8, 16)
    )
    assert eight["pipeline_efficiency_8"].value == 0.95
    assert eight["total_ratio_8"].holds
    assert not sixteen["total_ratio_16"].holds
