from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from meshnode_llama_cpp import frames
from meshnode_llama_cpp.library import start
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.served import open_model
from meshnode_skippy.coordinating import ROWS, limits, rules
from msgspec.structs import replace

from p2p_mesh.core.records import Sampling
from p2p_mesh.testing.models import Kind
from tests.plugins.skippy.ring import CONTEXT, SLOTS, Ring, commands, ids, prompt

WILD = Sampling(temperature=1.2, top_k=0, min_p=0, seed=7, repeat_penalty=1.3)


class Solo(Ring):
    """The whole model in one engine, asked in the same way."""

    def __init__(self, path: Path) -> None:
        start()
        command = frames.Open("m", str(path), CONTEXT, SLOTS, 1, deterministic=True)
        self.coordinator = open_model(command, [], lambda _: None)  # type: ignore[assignment]
        self.answers, self.refused = defaultdict(list), []

    def turn(self) -> None:
        """Nothing is on its way."""


def ask_all(ring: Ring) -> None:
    for number in range(6):
        ring.ask(number, prompt(number, 20 + 11 * number), 24)
    ring.ask(6, prompt(1, 31), 16, sampling=WILD, logprobs=2)
    ring.ask(7, prompt(2, 70), 12, choices=2)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    start()
    return tmp_path_factory.mktemp("stages")


@pytest.mark.parametrize("kind", ["llama", "sliding", "hybrid"])
def test_a_model_in_stages_says_what_it_says_whole(folder: Path, kind: Kind) -> None:
    ring = Ring(commands(folder, kind=kind, deterministic=True))
    solo = Solo(folder / f"{kind}.gguf")
    for one in (ring, solo):
        ask_all(one)
    assert ring.run() == solo.run()
    assert ids(ring.answers[7], 1) == ids(solo.answers[7], 1)
    assert [one.logprobs for one in ring.answers[6]] == [one.logprobs for one in solo.answers[6]]


def test_answers_go_on_when_the_ring_was_down(folder: Path) -> None:
    opens = commands(folder, deterministic=True)
    undisturbed, ring = Ring(opens), Ring(opens)
    for one in (undisturbed, ring):
        ask_all(one)
    for _ in range(40):
        ring.step()
        ring.turn()
    ring.lose()
    ring.restart()
    assert ring.run() == undisturbed.run()


def test_what_was_under_way_in_an_older_epoch_is_nobodys(folder: Path) -> None:
    ring = Ring(commands(folder, deterministic=True))
    ring.ask(1, prompt(1), 8)
    for _ in range(3):
        ring.step()
    ring.restart()  # and what is on its way still comes
    alone = Ring(commands(folder, deterministic=True))
    alone.ask(1, prompt(1), 8)
    assert ring.run() == alone.run()


def test_a_beginning_that_was_read_is_not_read_again(folder: Path) -> None:
    ring = Ring(commands(folder, deterministic=True))
    for number in (1, 2):
        ring.ask(number, prompt(1, 90), 6)
        ring.run()
    usage = ring.answers[2][-1].usage
    assert usage is not None
    assert usage.cached_tokens >= 64
    assert ids(ring.answers[1]) == ids(ring.answers[2])


def test_a_state_that_cannot_go_back_is_saved_by_all_stages(folder: Path) -> None:
    opens = commands(folder, kind="hybrid", deterministic=True)
    ring = Ring(opens)
    ring.ask(1, prompt(1, 90), 6)
    ring.run()
    ring.ask(2, [*prompt(1, 90), 77], 6)  # not what the first answer went on with
    both = ring.run()
    usage = ring.answers[2][-1].usage
    assert usage is not None
    assert usage.cached_tokens >= 64
    alone = Ring(opens)
    alone.ask(2, [*prompt(1, 90), 77], 6)
    assert alone.run()[2] == both[2]
    ring.restart()
    ring.ask(3, [*prompt(1, 90), 77], 6)
    assert ring.run()[3] == both[2]


@pytest.mark.parametrize("kind", ["hybrid", "sliding"])
def test_what_is_on_its_way_is_not_taken_for_a_prompt_that_was_read(
    folder: Path, kind: Kind
) -> None:
    """A memory that cannot go back has the next token when another prompt would copy it."""
    opens = commands(folder, kind=kind)
    first = prompt(1, 130)
    for wait in range(8):
        ring, alone = Ring(opens), Ring(opens)
        ring.ask(1, first, 12)
        while not ring.answers[1]:
            ring.step()
            ring.turn()
        for _ in range(wait):
            ring.step()
            ring.turn()
        ring.ask(2, [*first, *prompt(3, 80)], 6)
        alone.ask(2, [*first, *prompt(3, 80)], 6)
        assert ring.run()[2] == alone.run()[2]


def test_cancelled_answers_leave_their_slots(folder: Path) -> None:
    ring = Ring(commands(folder, deterministic=True))
    for number in range(SLOTS + 2):
        ring.ask(number, prompt(number, 60), 40)
    for _ in range(12):
        ring.step()
        ring.turn()
    for number in range(SLOTS):
        ring.coordinator.cancel(number)
    told = ring.run()
    assert len(told[SLOTS]) == len(told[SLOTS + 1]) == 40
    alone = Ring(commands(folder, deterministic=True))
    alone.ask(SLOTS, prompt(SLOTS, 60), 40)
    assert alone.run()[SLOTS] == told[SLOTS]


def test_guesses_are_verified_over_all_stages(folder: Path) -> None:
    plain, guessing = (
        Ring(commands(folder, deterministic=True, speculation=on)) for on in (False, True)
    )
    for ring in (plain, guessing):
        ring.ask(1, [1, 20, 30, 40] * 12, 200)
    assert plain.run() == guessing.run()
    usage = guessing.answers[1][-1].usage
    assert usage is not None
    assert usage.drafted_tokens > 0


def test_a_draft_that_is_the_model_is_always_right(folder: Path) -> None:
    opens = commands(folder, deterministic=True, speculation=False)
    drafted = [
        command if command.stage else replace(command, draft=command.metadata) for command in opens
    ]
    with_draft, plain = Ring(drafted, delay=0.05), Ring(opens)
    for ring in (with_draft, plain):
        ring.ask(1, prompt(3), 200)
    assert with_draft.run() == plain.run()
    usage = with_draft.answers[1][-1].usage
    assert usage is not None
    assert usage.accepted_tokens == usage.drafted_tokens > 100


def test_schemas_hold_over_stages(folder: Path) -> None:
    ring = Ring(commands(folder, deterministic=True))
    schema = {"type": "object", "properties": {"a": {"const": 5}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    ring.ask(1, prompt(1), 60, schema=schema)
    ring.run()
    assert json.loads("".join(delta.text for delta in ring.answers[1])) == {"a": 5}


def test_a_narrow_wire_answers_as_well(folder: Path) -> None:
    for wire in ("f16", "q8"):
        ring = Ring(commands(folder, wire=wire))
        ring.ask(1, prompt(1), 10)
        assert len(ring.run()[1]) == 10


def test_a_prompts_own_tokens_are_scored(folder: Path) -> None:
    ring, solo = Ring(commands(folder, deterministic=True)), Solo(folder / "llama.gguf")
    for one in (ring, solo):
        one.ask(1, prompt(1, 100), 3, echo=True, logprobs=1)
        one.run()
    scores = [[score for delta in one.answers[1] for score in delta.logprobs]
              for one in (ring, solo)]  # fmt: skip
    assert scores[0] == scores[1]
    assert len(scores[0]) == 103


def test_half_scored_prompts_are_given_up_when_the_ring_was_down(folder: Path) -> None:
    ring = Ring(commands(folder, deterministic=True))
    ring.ask(1, prompt(1, 200), 3, echo=True, logprobs=1)
    for _ in range(5):
        ring.step()
        ring.turn()
    ring.lose()
    ring.restart()
    ring.run()
    assert [one.code for one in ring.refused] == ["engine_died"]


def test_what_the_memory_allows_is_that_of_the_whole_model(folder: Path) -> None:

    kinds: tuple[tuple[Kind, bool, int], ...] = (
        ("llama", True, 0),
        ("sliding", True, 32 + ROWS),
        ("hybrid", False, 0),
    )
    for kind, trims, cells in kinds:
        command = commands(folder, kind=kind)[0]
        model = Model(command.metadata, name="m", progress=lambda _: None, part="vocabulary")
        found = rules(model, command)
        assert (found.trims, found.cells) == (trims, cells)
    assert limits(commands(folder, deterministic=True)[0]).rows == 48
