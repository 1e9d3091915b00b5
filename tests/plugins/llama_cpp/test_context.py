from __future__ import annotations

from meshnode_llama_cpp.context import Context, Sampler

from p2p_mesh.core.records import Sampling

PROMPT = [1, 10, 20, 30]


def first(context: Context, sampling: Sampling, position: int = 0) -> int:
    """The token that follows the prompt."""
    context.rows.clear()
    row = context.rows.add(0, 0, PROMPT, output=True)
    context.decode()
    context.forget(0)
    sampler = Sampler(context, sampling, PROMPT)
    token = sampler.sample(row, position)
    sampler.free()
    return token


def test_greedy_is_one_token(context: Context) -> None:
    greedy = Sampling(temperature=0)
    assert len({first(context, greedy, position) for position in range(8)}) == 1


def test_a_draw_depends_on_seed_and_position_alone(context: Context) -> None:
    sampling = Sampling(temperature=2, top_k=0, min_p=0, seed=3)
    drawn = [first(context, sampling, position) for position in range(8)]
    assert drawn == [first(context, sampling, position) for position in range(8)]
    assert len(set(drawn)) > 1


def test_a_penalty_looks_at_the_prompt(context: Context) -> None:
    favourite = first(context, Sampling(temperature=0))
    context.rows.clear()
    row = context.rows.add(0, 0, PROMPT, output=True)
    context.decode()
    context.forget(0)
    sampler = Sampler(context, Sampling(temperature=0, repeat_penalty=10), [*PROMPT, favourite])
    assert sampler.sample(row, 0) != favourite
    sampler.free()


def test_sequences_do_not_see_one_another(context: Context) -> None:
    alone = first(context, Sampling(temperature=0))
    context.rows.clear()
    context.rows.add(1, 0, [1, 99, 98, 97, 96], output=True)
    row = context.rows.add(0, 0, PROMPT, output=True)
    context.decode()
    sampler = Sampler(context, Sampling(temperature=0), PROMPT)
    assert sampler.sample(row, 0) == alone
    sampler.free()
