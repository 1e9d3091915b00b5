from __future__ import annotations

import numpy as np
import pytest
from meshnode_llama_cpp.drawing import Drawn, Fed, Start
from meshnode_llama_cpp.prefixes import Rules
from meshnode_skippy.pipeline import MOST_FLIGHTS, STUCK, Filling, Recorder, Ring
from meshnode_skippy.wire import Batch, Result

from p2p_mesh.core.records import Sampling, TokenLogprob
from p2p_mesh.errors import RemoteError


class Circle:
    """A ring whose other stages are the test."""

    def __init__(self, stages: int = 2) -> None:
        self.sent: list[Batch] = []
        self.now = 0.0
        self.ring = Ring(
            self._compute,
            stages=stages,
            rules=Rules(),
            rows=16,
            outputs=8,
            vocabulary=100,
            state_size=lambda _: 7,
            clock=lambda: self.now,
        )
        self.ring.restart(1)

    def _compute(self, batch: Batch) -> None:
        batch.timed(1e-6)
        self.sent.append(batch)

    def submit(self, slot: int = 0, *, tokens: list[int] | None = None, writing: int = 1) -> None:
        self.ring.rows.clear()
        row = self.ring.rows.add(slot, 0, tokens or [5], outputs=1)
        self.ring.submit([Fed(slot, row)], writing=writing)

    def come(self, batch: Batch) -> None:
        drawn = tuple(Drawn(fed.slot, (9,)) for fed in batch.orders.fed)
        self.ring.hear(Result(batch.epoch, batch.number, 1e-6, 2e-6, drawn))


def start(slot: int) -> Start:
    return Start(slot, Sampling(temperature=0))


def test_rows_are_laid_out_one_after_the_other() -> None:
    rows = Filling(8)
    assert rows.add(0, 4, [7, 8, 9], outputs=1) == 2
    assert rows.add(2, 0, [6], outputs=0) == 4
    batch = rows.batch(1, 1)
    assert batch.slots.tolist() == [0, 0, 0, 2]
    assert batch.positions.tolist() == [4, 5, 6, 0]
    assert batch.tokens.tolist() == [7, 8, 9, 6]
    assert batch.outputs.tolist() == [0, 0, 1, 0]
    rows.clear()
    assert rows.add(1, 0, [1], outputs=1) == 0


def test_orders_travel_with_the_next_batch_and_only_with_it() -> None:
    circle = Circle()
    circle.ring.memory.forget(3)
    circle.ring.memory.copy(0, 1)
    circle.ring.memory.trim(1, 7)
    circle.ring.begin(start(1))
    circle.ring.end(2)
    circle.submit()
    circle.submit()
    first, second = circle.sent
    assert first.orders.memory == (("forget", 3, 0), ("copy", 0, 1), ("trim", 1, 7))
    assert [one.slot for one in first.orders.begins] == [1]
    assert first.orders.ends == (2,)
    assert second.orders.memory == ()
    assert second.orders.begins == ()
    assert second.orders.ends == ()


def test_a_slot_that_ends_before_it_was_told_of_is_not_told_of() -> None:
    circle = Circle()
    circle.ring.begin(start(1))
    circle.ring.end(1)
    circle.ring.end(2)
    circle.ring.begin(start(2))
    circle.submit()
    assert circle.sent[0].orders.ends == ()
    assert [one.slot for one in circle.sent[0].orders.begins] == [2]


def test_results_come_in_the_order_of_their_batches() -> None:
    circle = Circle()
    circle.submit(0)
    circle.submit(1)
    assert circle.ring.results() == []
    for batch in circle.sent:
        circle.come(batch)
    first, second = circle.ring.results()
    assert (first.drawn[0].slot, second.drawn[0].slot) == (0, 1)
    assert circle.ring.results() == []


def test_after_a_result_was_lost_nothing_goes_out_before_a_restart() -> None:
    circle = Circle()
    circle.submit(0)
    circle.submit(1)
    with pytest.raises(RemoteError, match="is not what was asked for"):
        circle.come(circle.sent[1])
    assert not circle.ring.has_room
    circle.come(circle.sent[0])
    assert circle.ring.results() == []
    circle.ring.restart(2)
    assert circle.ring.has_room


@pytest.mark.parametrize("drawn", [
    (), (Drawn(1, (9,)),), (Drawn(0, ()),), (Drawn(0, (9, 9)),), (Drawn(0, (100,)),),
    (Drawn(0, (-1,)),), (Drawn(0, (9,), scores=(TokenLogprob(token=1),)),),
    (Drawn(0, (9,), logprobs=(TokenLogprob(token=1),) * 2),), (Drawn(0, (9,)), Drawn(1, (9,))),
])  # fmt: skip
def test_a_last_stage_may_say_only_what_was_asked_for(drawn: tuple[Drawn, ...]) -> None:
    circle = Circle()
    circle.submit(0)
    with pytest.raises(RemoteError):
        circle.ring.hear(Result(1, circle.sent[0].number, 0.1, 0.1, drawn))


def test_a_batch_that_does_not_come_around_is_noticed() -> None:
    circle = Circle()
    assert not circle.ring.is_stuck()
    circle.submit(0)
    assert not circle.ring.is_stuck()
    circle.now += STUCK + 1
    assert circle.ring.is_stuck()
    circle.ring.lose()
    assert not circle.ring.is_stuck()


def test_nothing_goes_out_before_the_ring_is_up() -> None:
    ring = Ring(lambda _: None, stages=2, rules=Rules(), rows=16, outputs=8, vocabulary=100,
                state_size=lambda _: 7)  # fmt: skip
    assert not ring.has_room
    ring.restart(1)
    assert ring.has_room


def test_flights_are_bounded() -> None:
    circle = Circle(stages=3)
    count = 0
    while circle.ring.has_room:
        circle.submit()
        count += 1
    assert 4 <= count <= MOST_FLIGHTS


def test_a_restart_forgets_what_was_in_flight() -> None:
    circle = Circle()
    circle.submit()
    circle.ring.memory.trim(0, 3)
    circle.ring.begin(start(1))
    circle.ring.restart(2)
    circle.come(circle.sent[0])  # of the epoch before
    assert circle.ring.results() == []
    circle.submit()
    assert circle.sent[1].epoch == 2
    assert circle.sent[1].orders.memory == ()
    assert circle.sent[1].orders.begins == ()


def test_how_many_go_together_is_learned_from_those_that_write() -> None:
    circle = Circle()
    assert circle.ring.together(0) == 0
    assert circle.ring.together(4) == 4
    for _ in range(3):
        circle.submit(writing=4)
        circle.come(circle.sent[-1])
    assert circle.ring.together(4) == 2
    for _ in range(9):
        circle.submit(tokens=[1] * 12, writing=2)  # a prompt is read beside them
        circle.come(circle.sent[-1])
    assert circle.ring.together(4) == 2


def test_states_are_kept_by_the_stages_under_a_number() -> None:
    recorder = Recorder(Rules(), lambda slot: 100 + slot)
    assert recorder.state_size(3) == 103
    one, other = recorder.save(3), recorder.save(1)
    recorder.restore(2, one)
    recorder.drop(other)
    assert (len(one), len(other)) == (103, 101)
    assert recorder.taken() == (
        ("save", 3, one.number), ("save", 1, other.number), ("restore", 2, one.number),
        ("drop", 0, other.number),
    )  # fmt: skip


def test_a_batch_sees_the_rows_as_they_were_filled() -> None:
    rows = Filling(4)
    rows.add(0, 0, [1, 2], outputs=1)
    assert np.shares_memory(rows.batch(1, 1).tokens, rows.tokens)
