"""What of each prompt is read, and how much is written after it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode_expert_shards.reading import LEAST, ROWS, SLOTS, Portion, Reading, portions
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.library import start
from meshnode_llama_cpp.model import Model

from p2p_mesh.testing.models import write_moe

PROMPTS = st.lists(st.lists(st.integers(0, 9), max_size=90), min_size=1, max_size=40)


def test_a_short_prompt_leaves_more_to_be_written() -> None:
    long, short = list(range(100)), [1, 2, 3]
    assert portions([long, short], tokens=80, context=100) == [
        Portion(tuple(range(30)), 10),
        Portion((1, 2, 3), 37),
    ]


def test_a_context_limits_what_one_prompt_takes() -> None:
    [one] = portions([list(range(100))], tokens=1000, context=64)
    assert (len(one.read), one.write) == (48, 16)


def test_of_too_many_prompts_some_are_taken_from_all_over() -> None:
    found = portions([[number] for number in range(100)], tokens=10 * LEAST, context=512)
    assert [one.read[0] for one in found] == list(range(0, 100, 10))


def test_where_there_is_nothing_to_read_there_is_nothing_to_write() -> None:
    assert portions([], tokens=100, context=64) == portions([[]], tokens=100, context=64) == []


@given(PROMPTS, st.integers(LEAST, 500), st.integers(LEAST, 128))
def test_portions_fit_the_tokens_and_the_context(
    prompts: list[list[int]], tokens: int, context: int
) -> None:
    found = portions(prompts, tokens=tokens, context=context)
    assert sum(len(one.read) + one.write for one in found) <= tokens
    assert all(len(one.read) + one.write <= context and one.read for one in found)
    assert all(one.write >= 1 for one in found)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    start()
    path: Path = tmp_path_factory.mktemp("models") / "moe.gguf"
    write_moe(path, endless=True)
    return Model(str(path), name="moe", progress=lambda _: None)


class Fed(Context):
    """Notes which tokens came where."""

    def _adapt(self, params: object) -> None:
        params.n_outputs_max = ROWS  # type: ignore[attr-defined]
        self.seen: list[tuple[int, int, list[int]]] = []

    def decode(self) -> None:
        super().decode()
        batch = self.rows.batch
        rows = [(batch.seq_id[row][0], batch.pos[row], batch.token[row])
                for row in range(batch.n_tokens)]  # fmt: skip
        self.seen += [(slot, place, [token]) for slot, place, token in rows]


def read(model: Model, wanted: list[Portion], seed: int = 1) -> tuple[Reading, Fed, list[float]]:
    context = Fed(model, Plan(context=256, slots=SLOTS, threads=1, rows=ROWS))
    context.seen.clear()
    shares: list[float] = []
    reading = Reading(model, context, seed=seed, progress=shares.append)
    reading.run(wanted)
    return reading, context, shares


def test_prompts_are_read_and_written_on_from_where_they_end(model: Model) -> None:
    long = Portion(tuple(range(5, 105)), 6)
    reading, context, shares = read(model, [long, Portion((7, 8), 3)])
    assert (reading.read, reading.written) == (102, 9)
    places = [place for slot, place, _ in context.seen if slot == 0]
    assert places == list(range(106))
    assert [place for slot, place, _ in context.seen if slot == 1] == list(range(5))
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_more_prompts_than_slots_take_their_turns(model: Model) -> None:
    wanted = [Portion((token,), 2) for token in range(5, 5 + SLOTS + 2)]
    reading, context, _ = read(model, wanted)
    assert (reading.read, reading.written) == (SLOTS + 2, 2 * (SLOTS + 2))
    first = [token for _, place, [token] in context.seen if place == 0]
    assert first == [one.read[0] for one in wanted]


def test_the_same_seed_writes_the_same(model: Model) -> None:
    wanted = [Portion((5, 6), 12)]
    assert read(model, wanted)[1].seen == read(model, wanted)[1].seen
    assert read(model, wanted)[1].seen != read(model, wanted, seed=2)[1].seen


class Ending(Model):
    """Has no more to say, whatever it said."""

    def ends(self, token: int) -> bool:
        return True


def test_an_answer_that_has_ended_is_not_written_on(tmp_path: Path) -> None:
    start()
    write_moe(tmp_path / "moe.gguf")
    model = Ending(str(tmp_path / "moe.gguf"), name="moe", progress=lambda _: None)
    reading, _, shares = read(model, [Portion((5, 6), 12)])
    assert (reading.read, reading.written) == (2, 0)
    assert shares[-1] == 1
