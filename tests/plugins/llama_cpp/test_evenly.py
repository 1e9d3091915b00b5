from __future__ import annotations

import socket
import time
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from meshnode_llama_cpp.evenly import GAP, LAG, MOST, Evenly, Outlet

STEP = 0.04


def told(steps: list[float]) -> list[float]:
    """When each of these steps is told, all of them beside a prompt."""
    evenly, now, found = Evenly(), 0.0, []
    for seconds in steps:
        now += seconds
        evenly.observe(now, is_beside=True)
        found.append(now + evenly.hold)
    return found


def longest(times: list[float]) -> float:
    return max(after - before for before, after in pairwise(times))


def test_one_long_step_makes_no_long_gap() -> None:
    steps = [*[STEP] * 50, 2.5 * STEP, *[STEP] * 50, 2.5 * STEP, STEP]
    assert longest(told(steps)) < 1.1 * GAP * STEP


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=60))
def test_nothing_is_told_early_late_or_out_of_turn(steps: list[float]) -> None:
    times, now = told(steps), 0.0
    for at, seconds in zip(times, steps, strict=True):
        now += seconds
        assert now <= at <= now + min(LAG * max(steps), MOST) + 1e-9
    assert times == sorted(times)


def test_what_has_no_prompt_beside_it_is_told_at_once() -> None:
    evenly = Evenly()
    for step in range(50):
        evenly.observe(step * STEP, is_beside=True)
    assert evenly.hold > STEP
    evenly.observe(50 * STEP, is_beside=False)
    assert evenly.hold == 0
    evenly.observe(60 * STEP, is_beside=False)
    evenly.observe(61 * STEP, is_beside=True)
    assert 0 < evenly.hold < 0.2 * STEP


def test_what_is_held_back_comes_in_its_time_and_in_order() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outlet, start = Outlet(theirs), time.perf_counter()
        outlet.send(b"a", 0.02)
        outlet.send(b"b", 0.04)
        assert [ours.recv(1), ours.recv(1)] == [b"a", b"b"]
        assert time.perf_counter() - start >= 0.04


def test_what_comes_takes_with_it_what_was_held_back() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outlet = Outlet(theirs)
        outlet.send(b"a", 60.0)
        outlet.send(b"b", 61.0)
        outlet.send(b"c")
        assert ours.recv(8) == b"abc"


def test_a_node_that_has_gone_is_no_defect_of_the_thread() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        outlet = Outlet(theirs)
        outlet.send(b"a", 0.001)
        assert outlet._thread is not None
        outlet._thread.join(10)
        assert not outlet._thread.is_alive()
