"""What comes alone, and what comes together."""

from __future__ import annotations

from p2p_mesh.core.bursts import Bursts


def test_first_thing_is_not_known_to_be_alone() -> None:
    assert not Bursts().is_alone(0.0)


def test_one_thing_at_a_time_is_alone() -> None:
    bursts = Bursts()
    bursts.is_alone(0.0)
    assert [bursts.is_alone(n * 0.02) for n in range(1, 5)] == [True] * 4


def test_bursts_are_together_but_for_the_first_of_the_first() -> None:
    bursts = Bursts()
    bursts.is_alone(0.0)
    found = [bursts.is_alone(0.02 * n + 0.0001 * k) for n in (1, 2, 3) for k in range(4)]
    assert found == [True] + [False] * 11


def test_alone_again_after_a_burst() -> None:
    bursts = Bursts()
    for now in (0.0, 0.0001, 0.02):
        assert not bursts.is_alone(now)
    assert bursts.is_alone(0.04)


def test_what_was_refused_and_comes_again_counts_once() -> None:
    bursts = Bursts()
    bursts.is_alone(0.0)
    assert bursts.is_alone(1.0)
    bursts.refused()
    assert not bursts.is_alone(1.0)
    assert bursts.is_alone(2.0)
