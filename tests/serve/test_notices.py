"""What the log says of a model: what is news, once."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from p2p_mesh.core.names import ModelId
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.serve.backend import Description
from p2p_mesh.serve.notices import REPORT_EVERY, SAID_AFTER, Notices

ABOUT = Description(
    context=64, slots=2, device="cpu", capabilities=frozenset(), notes=("no chat template",)
)


@pytest.fixture
def said() -> list[Entry]:
    return []


@pytest.fixture
def notices(said: list[Entry]) -> Notices:
    return Notices(ModelId("m"), Journal(said.append))


async def test_load_that_takes_long_is_told_now_and_then(
    notices: Notices, said: list[Entry], autojump_clock: MockClock
) -> None:
    notices.opens()
    for percent in range(0, 101, 10):
        notices.loading(percent / 100)
        await trio.sleep(REPORT_EVERY / 2)
    assert [one.message for one in said] == [
        f"m is loading: {percent}%" for percent in (20, 40, 60, 80)
    ]


async def test_model_that_waits_says_so_once_it_lasts_and_again_for_another_reason(
    notices: Notices, said: list[Entry], autojump_clock: MockClock
) -> None:
    for count in range(9):
        notices.waits(f"{count} GB are missing")
        await trio.sleep(SAID_AFTER / 3)
    notices.waits("bob does not answer")
    assert [one.message for one in said] == [
        "m waits for other nodes: 3 GB are missing",
        "m waits for other nodes: bob does not answer",
    ]
    notices.ready(ABOUT, 1.0)
    said.clear()
    notices.waits("bob does not answer")  # it was ready in between
    assert said == []


async def test_each_turn_has_words_of_its_own(notices: Notices, said: list[Entry]) -> None:
    notices.ready(ABOUT, 1.25)
    notices.renewed("3 nodes take part now")
    notices.died("abort", was_ready=True)
    notices.died("abort", was_ready=False)
    notices.failed("it is too large")
    assert [(one.level, one.event, one.message) for one in said] == [
        ("warning", "model_note", "m: no chat template"),
        ("info", "model_ready",
         "m is ready: context 64, 2 at a time, on cpu, loaded in 1.2 s"),
        ("info", "engine_renewed", "the engine of m is opened anew: 3 nodes take part now"),
        ("warning", "engine_died", "the engine of m ended: abort; starting it again"),
        ("warning", "engine_died", "the engine of m could not be opened: abort; starting it again"),
        ("error", "model_failed", "m cannot be served: it is too large"),
    ]  # fmt: skip
