from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.decoder import Decoder
from meshnode_llama_cpp.draft import Draft
from meshnode_llama_cpp.drawing import Drawing
from meshnode_llama_cpp.frames import Answer, Rejected
from meshnode_llama_cpp.grammar import Grammars, Matcher
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.prompt import Prompts
from meshnode_llama_cpp.scheduler import EXACT
from meshnode_llama_cpp.seats import Seats
from meshnode_llama_cpp.sequence import Task
from meshnode_llama_cpp.steps import Here

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import (
    Delta,
    InferenceRequest,
    Resume,
    Sampling,
    TextPrompt,
    TokenPrompt,
)
from p2p_mesh.errors import RequestError
from p2p_mesh.testing.models import Kind, Shape, write_model

GREEDY = Sampling(temperature=0)
WILD = Sampling(temperature=1.2, top_k=0, min_p=0, seed=7)
CONTEXT = 512


class Table:
    """A decoder over a model, and the answers that it gave."""

    def __init__(
        self,
        model: Model,
        *,
        slots: int = 3,
        drafting: bool = False,
        is_exact: bool = True,
        **more: Any,
    ) -> None:
        plan = Plan(CONTEXT, slots, threads=1, rows=EXACT.rows, is_exact=is_exact)
        context = Context(model, plan)
        if drafting:
            more["draft"] = Draft(model, Context(model, plan), model, slots)
        self._prompts = Prompts(model, CONTEXT)
        grammars = Grammars(model)
        self.decoder = Decoder(
            model, Here(context, Drawing(context, model, grammars)), seats=Seats(context, slots),
            grammars=grammars, limits=EXACT,
            context_length=CONTEXT, **more,
        )  # fmt: skip
        self.answers: dict[int, list[Delta]] = defaultdict(list)
        self.refused: list[Rejected] = []
        self._numbers = iter(range(10_000))

    def add(self, tokens: list[int], most: int = 12, **more: Any) -> int:
        request = InferenceRequest(
            id=RequestId("r"), model=ModelId("m"), prompt=TokenPrompt(tokens=tuple(tokens)),
            max_tokens=most, **{"sampling": GREEDY, **more},
        )  # fmt: skip
        number = next(self._numbers)
        prompt = self._prompts.read(request)
        self.decoder.add(Task(number, request, prompt, min(most, CONTEXT - len(tokens))))
        return number

    def step(self) -> None:
        for outcome in self.decoder.step():
            if isinstance(outcome, Answer):
                self.answers[outcome.number].append(outcome.delta)
            else:
                self.refused.append(outcome)

    def run(self) -> None:
        while not self.decoder.idle:
            self.step()

    def ask(self, tokens: list[int], most: int = 12, **more: Any) -> list[Delta]:
        number = self.add(tokens, most, **more)
        self.run()
        return self.answers[number]


def ids(deltas: list[Delta], choice: int = 0) -> list[int]:
    return [token for delta in deltas if delta.choice == choice for token in delta.tokens]


def text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def prompt(number: int, length: int = 20) -> list[int]:
    return [1, *(10 + (7 * number + place * place) % 400 for place in range(length - 1))]


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Model:
    return load(tmp_path_factory.mktemp("endless"), "llama")


def load(folder: Path, kind: Kind) -> Model:
    path = folder / f"{kind}.gguf"
    write_model(path, kind=kind, shape=Shape(layers=4), endless=True)
    return Model(str(path), name=kind, progress=lambda _: None)


def test_an_answer_has_a_delta_for_each_token_and_usage_at_the_end(endless: Model) -> None:
    deltas = Table(endless).ask(prompt(0, 70))
    assert [len(delta.tokens) for delta in deltas] == [1] * 12
    assert [delta.finish for delta in deltas] == [None] * 11 + ["length"]
    usage = deltas[-1].usage
    assert usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (70, 12, 0)
    assert all(delta.usage is None for delta in deltas[:-1])


def test_company_and_slots_change_no_answer(endless: Model) -> None:
    table = Table(endless, slots=4)
    asked = {table.add(prompt(n, 5 + 9 * n), 30, sampling=(GREEDY, WILD)[n % 2]): n
             for n in range(9)}  # fmt: skip
    table.run()
    for number, n in asked.items():
        alone = Table(endless, slots=1).ask(
            prompt(n, 5 + 9 * n), 30, sampling=(GREEDY, WILD)[n % 2]
        )
        assert ids(alone) == ids(table.answers[number])


def test_a_stop_string_ends_an_answer(endless: Model) -> None:
    table = Table(endless)
    whole = text(table.ask(prompt(0)))
    stop = whole[len(whole) // 2 :][:3]
    deltas = table.ask(prompt(0), stop=(stop,))
    assert deltas[-1].finish == "stop"
    assert text(deltas) == whole[: whole.index(stop)]


def test_the_end_of_a_turn_is_counted_and_not_shown(model: Model) -> None:
    table = Table(model)
    ended = [
        deltas for n in range(12) if (deltas := table.ask(prompt(n), 200))[-1].finish == "stop"
    ]
    assert ended
    for deltas in ended:
        assert model.ends(deltas[-1].tokens[-1])
        assert deltas[-1].text == ""
        assert deltas[-1].usage
        assert deltas[-1].usage.completion_tokens == len(ids(deltas))


def test_slots_know_who_sits_in_them(endless: Model) -> None:
    table = Table(endless, slots=2)
    numbers = [table.add(prompt(n), 400) for n in range(2)]
    table.step()
    assert sorted(table.decoder.seated(slot).task.number for slot in (0, 1)) == numbers


def test_cancelled_answers_make_room(endless: Model) -> None:
    table = Table(endless, slots=2)
    numbers = [table.add(prompt(n), 400) for n in range(4)]
    table.step()
    for number in (*numbers, *numbers):
        table.decoder.cancel(number)
    assert table.decoder.idle
    assert ids(table.ask(prompt(9))) == ids(Table(endless).ask(prompt(9)))


def test_a_second_turn_reads_the_new_turn_only(endless: Model) -> None:
    table = Table(endless)
    first = table.ask(prompt(0, 100))
    turn = prompt(0, 100) + ids(first) + prompt(3, 10)
    second = table.ask(turn)
    assert second[-1].usage
    assert second[-1].usage.cached_tokens == 111  # all but the last token, which was not fed
    assert ids(second) == ids(Table(endless).ask(turn))


def test_choices_share_the_prompt_and_differ(endless: Model) -> None:
    table = Table(endless, slots=2)
    deltas = table.ask(prompt(0, 100), choices=3, sampling=WILD)
    texts = [ids(deltas, choice) for choice in range(3)]
    assert len(set(map(tuple, texts))) == 3
    assert [delta.finish for delta in deltas].count("length") == 3
    assert [delta.usage for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    usage = deltas[-1].usage
    assert usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (100, 36)


@pytest.mark.parametrize("cut", [0, 1, 11, 29])
def test_a_broken_answer_goes_on(endless: Model, cut: int) -> None:
    whole = Table(endless).ask(prompt(0), 30, sampling=WILD, choices=2)
    one, other = ids(whole, 0), ids(whole, 1)
    seen = "".join(delta.text for delta in whole if delta.choice == 1)[: cut // 2]
    resume = (Resume(choice=0, tokens=tuple(one), finished=True),
              Resume(choice=1, tokens=tuple(other[:cut]), text=len(seen)))  # fmt: skip
    rest = Table(endless).ask(prompt(0), 30, sampling=WILD, choices=2, resume=resume)
    assert ids(rest, 1) == other[cut:]
    assert seen + text(rest) == "".join(delta.text for delta in whole if delta.choice == 1)
    assert [delta.finish for delta in rest if delta.finish] == ["length"]
    assert rest[-1].usage
    assert rest[-1].usage.completion_tokens == 60


def test_an_answer_that_broke_at_its_very_end_is_finished(endless: Model) -> None:
    whole = Table(endless).ask(prompt(0))
    resume = (Resume(tokens=tuple(ids(whole)), text=len(text(whole))),)
    rest = Table(endless).ask(prompt(0), resume=resume)
    assert [(delta.tokens, delta.text, delta.finish) for delta in rest] == [((), "", "length")]


def test_every_token_has_its_logprob(endless: Model) -> None:
    deltas = Table(endless).ask(prompt(0), logprobs=2)
    scores = [score for delta in deltas for score in delta.logprobs]
    assert [score.token for score in scores] == ids(deltas)
    assert all(score.top[0][0] == score.token for score in scores)  # it is greedy
    assert all(len(score.top) == 2 for score in scores)


def test_a_prompt_is_echoed_and_scored(endless: Model) -> None:
    table = Table(endless)
    table.ask(prompt(0, 150))
    deltas = table.ask(prompt(0, 150), 1, echo=True, logprobs=1)
    scores = [score for delta in deltas for score in delta.logprobs]
    assert [score.token for score in scores] == [*prompt(0, 150), *ids(deltas)]
    assert [score.logprob is None for score in scores] == [True] + [False] * 150
    assert text(deltas).endswith(endless.piece(ids(deltas)[0]).decode(errors="replace"))


def test_a_prompt_alone_is_scored(endless: Model) -> None:
    deltas = Table(endless).ask(prompt(0, 60), 0, echo=True, logprobs=0)
    assert sum(len(delta.logprobs) for delta in deltas) == 60
    assert (deltas[-1].finish, ids(deltas)) == ("length", [])


@pytest.mark.parametrize("kind", ["llama", "sliding", "recurrent", "hybrid"])
def test_nothing_is_reused_wrongly(tmp_path: Path, kind: Kind, endless: Model) -> None:
    """Conversations that go on, go back, fork and begin alike."""
    model = endless if kind == "llama" else load(tmp_path, kind)
    table, chance = Table(model), random.Random(3)
    cached, before = 0, [prompt(0, 40)]
    for _ in range(16):
        base = chance.choice(before)
        turn = [
            *base[: chance.choice([len(base), len(base), 30])],
            *prompt(chance.randrange(99), 9),
        ]
        deltas = table.ask(turn[:400])
        assert ids(deltas) == ids(Table(model, slots=1).ask(turn[:400]))
        assert deltas[-1].usage
        cached += deltas[-1].usage.cached_tokens
        before = [*before[-4:], turn[:400] + ids(deltas)]
    assert cached > 250


class Hopeful:
    """Guessing always pays."""

    def observe(self, guessed: int, right: int) -> None:
        assert 0 <= right <= guessed

    def count(self, offered: int, *_: Any, **__: Any) -> int:
        return offered


@pytest.fixture
def hopeful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode_llama_cpp.sequence.Hope", Hopeful)


@pytest.mark.parametrize("drafting", [False, True])
@pytest.mark.parametrize("sampling", [GREEDY, WILD])
def test_guesses_change_no_answer(
    endless: Model, hopeful: None, sampling: Sampling, drafting: bool
) -> None:
    table = Table(endless, speculates=not drafting, drafting=drafting)
    usages = []
    for n in range(6):
        tokens = prompt(n, 12) * 4
        deltas = table.ask(tokens, 60, sampling=sampling)
        assert ids(deltas) == ids(Table(endless).ask(tokens, 60, sampling=sampling))
        usages.append(deltas[-1].usage)
    if drafting or sampling is GREEDY:  # what is drawn wildly never comes twice
        assert sum(usage.drafted_tokens for usage in usages if usage) > 0
    if drafting and sampling is GREEDY:  # the draft is the model itself: it is always right
        assert all(usage.drafted_tokens == usage.accepted_tokens for usage in usages if usage)


SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
          "additionalProperties": False}  # fmt: skip


def ask_json(table: Table, **more: Any) -> int:
    request = InferenceRequest(
        id=RequestId("r"), model=ModelId("m"), prompt=TextPrompt(text="the"), max_tokens=60,
        sampling=WILD, schema=SCHEMA, **more,
    )  # fmt: skip
    number = next(table._numbers)
    table.decoder.add(Task(number, request, table._prompts.read(request), 60))
    return number


def test_a_schema_is_followed(endless: Model) -> None:
    table = Table(endless)
    number = ask_json(table)
    table.run()
    assert json.loads(text(table.answers[number])) in ({"a": True}, {"a": False})
    assert table.answers[number][-1].finish == "stop"


def test_an_answer_with_a_schema_goes_on(endless: Model) -> None:
    table = Table(endless)
    number = ask_json(table, choices=2)
    table.run()
    whole = ids(table.answers[number], 1)
    broken = (Resume(choice=1, tokens=tuple(whole[:4])),)
    again = ask_json(table, choices=2, resume=broken)
    table.run()
    assert ids(table.answers[again], 1) == whole[4:]


def test_an_answer_that_its_grammar_does_not_allow_is_refused(endless: Model) -> None:
    table = Table(endless)
    with pytest.raises(RequestError, match="response_format"):
        ask_json(table, resume=(Resume(tokens=(300, 301)),))
    assert table.decoder.idle
    assert len(ids(table.ask(prompt(1)))) == 12


def test_a_grammar_that_fails_on_the_way_ends_all_choices(
    endless: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table(endless, slots=3)
    number, other = ask_json(table, choices=2), table.add(prompt(1), 40)
    for _ in range(3):
        table.step()

    def fail(self: Matcher, logits: object) -> None:
        raise RequestError("it became too complex", param="response_format")

    monkeypatch.setattr(Matcher, "mask", fail)
    table.run()
    assert [one.number for one in table.refused] == [number]
    assert len(ids(table.answers[other])) == 40
    assert len(ids(table.ask(prompt(2)))) == 12


@pytest.mark.parametrize("kind", ["recurrent", "hybrid"])
def test_a_prompt_is_scored_whole_a_second_time(tmp_path: Path, kind: Kind) -> None:
    table = Table(load(tmp_path, kind))
    for _ in range(2):
        deltas = table.ask(prompt(0, 60), 0, echo=True, logprobs=0)
        assert sum(len(delta.logprobs) for delta in deltas) == 60


def test_scores_of_a_long_prompt_go_out_as_they_come(endless: Model) -> None:
    deltas = Table(endless).ask(prompt(0, 400), 0, echo=True, logprobs=0)
    assert sum(len(delta.logprobs) for delta in deltas) == 400
    assert max(len(delta.logprobs) for delta in deltas) <= 48


def test_a_task_of_many_choices_leaves_room_for_others(endless: Model) -> None:
    table = Table(endless, slots=2)
    many = table.add(prompt(0, 80), 20, choices=8, sampling=WILD)
    one = table.add(prompt(1), 5)
    while not table.answers[one] or not table.answers[one][-1].usage:
        table.step()
    assert not any(delta.usage for delta in table.answers[many])
    table.run()
    assert [len(ids(table.answers[many], choice)) for choice in range(8)] == [20] * 8


def test_choices_of_a_sliding_model_run_side_by_side(tmp_path: Path) -> None:
    table = Table(load(tmp_path, "sliding"), slots=4, is_exact=False)
    number = table.add(prompt(0, 200), 30, choices=3, sampling=WILD)
    for _ in range(20):
        table.step()
    assert {delta.choice for delta in table.answers[number]} == {0, 1, 2}
    table.run()
