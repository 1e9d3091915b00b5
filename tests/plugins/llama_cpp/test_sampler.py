from __future__ import annotations

import numpy as np
import pytest
from meshnode_llama_cpp.context import Context
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.sampler import Sampler, logprob

from p2p_mesh.core.records import Sampling

PROMPT = [1, 10, 20, 30]
GREEDY = Sampling(temperature=0)


def first(
    context: Context, sampling: Sampling, position: int = 0, before: list[int] = PROMPT
) -> int:
    """The token that follows the prompt."""
    context.rows.clear()
    row = context.rows.add(0, 0, PROMPT, outputs=1)
    context.decode()
    context.forget(0)
    sampler = Sampler(context, sampling, before)
    token = sampler.sample(row, position)
    sampler.free()
    return token


def test_greedy_is_one_token(context: Context) -> None:
    assert len({first(context, GREEDY, position) for position in range(8)}) == 1


def test_a_draw_depends_on_seed_and_position_alone(context: Context) -> None:
    sampling = Sampling(temperature=2, top_k=0, min_p=0, seed=3)
    drawn = [first(context, sampling, position) for position in range(8)]
    assert drawn == [first(context, sampling, position) for position in range(8)]
    assert len(set(drawn)) > 1


def test_a_penalty_looks_at_what_came_before(context: Context) -> None:
    favourite = first(context, GREEDY)
    penalty = Sampling(temperature=0, repeat_penalty=10)
    assert first(context, penalty, before=[*PROMPT, favourite]) != favourite


def test_a_bias_decides(context: Context) -> None:
    assert first(context, Sampling(temperature=0, logit_bias=((77, 100.0),))) == 77
    favourite = first(context, GREEDY)
    banned = Sampling(temperature=0, logit_bias=((favourite, -100.0),))
    assert first(context, banned) != favourite


def test_logprobs_are_of_the_whole_vocabulary(model: Model) -> None:
    logits = np.zeros(model.token_count, np.float32)
    logits[[5, 300]] = 3.0, 2.0
    found = logprob(logits, 300, 3, model)
    assert found.logprob == pytest.approx(2 - np.log(np.exp(logits).sum()), abs=1e-5)
    assert [token for token, _, _ in found.top[:2]] == [5, 300]
    assert found.top[0][1] == model.spelled(5)
    assert len(found.top) == 3
    assert logprob(logits, 300, 0, model).top == ()


def test_what_cannot_come_has_a_finite_logprob(model: Model) -> None:
    logits = np.full(model.token_count, -np.inf, np.float32)
    logits[5] = 1.0
    assert logprob(logits, 6, 2, model).logprob == -9999.0
    assert logprob(logits, 5, 0, model).logprob == 0.0
