"""How much each model is wanted: what is counted, when it is said, and what it adds up to."""

import itertools
import math
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core import demand as module
from p2p_mesh.core.demand import (
    GAP,
    HALF_LIFE,
    HEARTBEAT,
    LIFETIME,
    MAX_COUNTED,
    MAX_RATES,
    MAX_WISHES,
    WISH,
    Demand,
    DemandReport,
    Heard,
    Rate,
    Reporter,
    Tally,
    decayed,
    read,
    wanted,
)
from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.wire import encode
from p2p_mesh.errors import Refused, RemoteError

NOW = 1_000_000.0
ALICE, BOB = PeerId("alice"), PeerId("bob")
M = ModelId("m")


def report(
    count: int = 1,
    rate: float = 8.0,
    *,
    issued_at: float = NOW,
    boot: int = 1_000_000_000,
    wishes: tuple[ModelId, ...] = (),
) -> DemandReport:
    return DemandReport(
        sequence=(boot, count), issued_at=issued_at, lifetime=LIFETIME,
        rates=(Rate(model=M, rate=rate),), wishes=wishes,
    )  # fmt: skip


def heard(author: PeerId = ALICE, now: float = NOW, **given: float) -> Heard:
    return read(author, encode(report(**given)), now)  # type: ignore[arg-type]


def test_steady_requests_are_counted_as_so_many_a_minute() -> None:
    tally = Tally()
    for second in range(0, 900, 5):
        tally.count(M, NOW + second)
    assert tally.rates(NOW + 900)[M] == pytest.approx(12.0, rel=0.04)


def test_rate_halves_in_its_half_life() -> None:
    tally = Tally()
    tally.count(M, NOW)
    first = tally.rates(NOW)[M]
    assert tally.rates(NOW + HALF_LIFE)[M] == pytest.approx(first / 2)
    assert tally.rates(NOW + 300) == {}


def test_clock_that_is_set_back_lets_nothing_grow() -> None:
    tally = Tally()
    tally.count(M, NOW)
    assert tally.rates(NOW - 3600) == tally.rates(NOW)


def test_coldest_is_forgotten_when_too_many_are_counted() -> None:
    tally = Tally()
    tally.count(M, NOW)
    tally.count(M, NOW)
    for number in range(MAX_COUNTED + 5):
        tally.count(ModelId(f"other-{number}"), NOW + 1 + number / 100)
    assert len(tally.rates(NOW + 5)) == MAX_COUNTED
    assert M in tally.rates(NOW + 5)


def test_nothing_is_said_while_nothing_is_wanted() -> None:
    reporter = Reporter(1.0)
    assert reporter.next({}, (), NOW) is None
    assert (reporter.is_speaking, reporter.rest(NOW)) == (False, 0.0)


def test_change_is_said_at_once_but_not_within_the_gap() -> None:
    reporter = Reporter(1.0)
    first = reporter.next({M: 0.7}, (), NOW)
    assert first is not None
    assert (first.sequence, first.rates) == ((1000, 1), (Rate(model=M, rate=0.7),))
    assert reporter.next({M: 70.0}, (), NOW + 1) is None
    assert reporter.rest(NOW + 1) == GAP - 1
    second = reporter.next({M: 70.0}, (), NOW + GAP)
    assert second is not None
    assert second.sequence == (1000, 2)


def test_what_the_others_believe_already_waits_for_the_heartbeat() -> None:
    reporter = Reporter(1.0)
    reporter.next({M: 10.0}, (), NOW)
    assert reporter.next({M: decayed(10.0, 10)}, (), NOW + 10) is None
    assert reporter.next({M: 11.0}, (), NOW + 10) is None
    assert reporter.next({M: 12.0}, (), NOW + 10) is not None
    assert reporter.next({M: 10.7}, (), NOW + 10 + HEARTBEAT) is not None


def test_report_is_repeated_for_whoever_is_new() -> None:
    reporter = Reporter(1.0)
    reporter.repeat()
    assert reporter.next({}, (), NOW) is None
    reporter.next({M: 1.0}, (), NOW)
    reporter.repeat()
    assert reporter.next({M: 1.0}, (), NOW + GAP - 1) is None
    assert reporter.next({M: 1.0}, (), NOW + GAP) is not None
    assert reporter.next({M: 1.0}, (), NOW + 2 * GAP) is None


def test_in_a_crowd_each_reports_less_often() -> None:
    reporter, demand = Reporter(1.0), Demand()
    for number in range(300):
        demand.apply(heard(PeerId(f"peer-{number}")))
    assert len(demand) == 300
    reporter.adapt(len(demand))
    first = reporter.next({M: 1.0}, (), NOW)
    assert first is not None
    assert first.lifetime == 3 * LIFETIME
    assert reporter.next({M: 90.0}, (), NOW + 3 * GAP - 1) is None
    assert reporter.next({M: 90.0}, (), NOW + 3 * GAP) is not None
    assert reporter.next({M: 90.0}, (), NOW + 3 * GAP + 3 * HEARTBEAT) is not None
    reporter.adapt(1_000_000)
    last = reporter.next({M: 1.0}, (), NOW + 1000)
    assert last is not None
    assert read(ALICE, encode(last), NOW + 1000).report.lifetime == 600


def test_end_of_the_demand_is_said_once() -> None:
    reporter = Reporter(1.0)
    reporter.next({}, [M], NOW)
    assert reporter.is_speaking
    last = reporter.next({}, (), NOW + GAP)
    assert last is not None
    assert (last.rates, last.wishes) == ((), ())
    assert not reporter.is_speaking
    assert reporter.next({}, (), NOW + 100) is None


def test_clock_that_is_set_back_does_not_silence() -> None:
    reporter = Reporter(1.0)
    reporter.next({M: 1.0}, (), NOW)
    assert reporter.next({M: 1.0}, (), NOW - 3600) is not None


def test_report_holds_the_hottest_models_only() -> None:
    rates = {ModelId(f"m{number:03}"): float(number) for number in range(100)}
    said = Reporter(1.0).next(rates, [ModelId(f"w{number:03}") for number in range(50)], NOW)
    assert said is not None
    assert len(said.rates) == MAX_RATES
    assert {one.rate for one in said.rates} == {float(n) for n in range(100 - MAX_RATES, 100)}
    assert len(said.wishes) == MAX_WISHES
    assert read(ALICE, encode(said), NOW).report == said


def test_largest_report_is_within_what_a_signature_covers() -> None:
    names = [ModelId("\U0001f600" * 253 + f"{number:03}") for number in range(100)]
    said = Reporter(1.0).next(dict.fromkeys(names, 1e9), names, NOW)
    assert said is not None
    assert len(encode(said)) < 64_000
    assert read(ALICE, encode(said), NOW).report.rates[0].rate == 1e6


def test_wish_counts_at_a_constant_rate() -> None:
    said = report(rate=4.0, wishes=(M, M, ModelId("w")))
    assert wanted(said, 0.0) == {M: 4.0 + WISH, "w": WISH}
    assert wanted(said, HALF_LIFE) == {M: 2.0 + WISH, "w": WISH}


def test_rates_are_summed_over_nodes_and_decay() -> None:
    demand = Demand()
    assert demand.apply(heard(ALICE, rate=8.0))
    assert demand.apply(heard(BOB, rate=2.0))
    assert demand.totals(NOW) == {M: 10.0}
    assert demand.totals(NOW + 30)[M] == pytest.approx(10 / math.sqrt(2))


def test_report_expires() -> None:
    demand = Demand()
    demand.apply(heard())
    assert demand.totals(NOW + LIFETIME - 0.1)
    assert demand.totals(NOW + LIFETIME) == {}
    demand.expire(NOW + LIFETIME)
    assert demand.apply(heard())


def test_older_report_changes_nothing() -> None:
    demand = Demand()
    demand.apply(heard(count=2, rate=4.0))
    assert not demand.apply(heard(count=1, rate=90.0))
    assert not demand.apply(heard(count=2, rate=4.0, now=NOW + 20))
    assert demand.totals(NOW) == {M: 4.0}
    assert demand.apply(heard(boot=1_000_000_001, count=1, rate=1.0))


def test_relaying_does_not_revive_a_report() -> None:
    assert heard(now=NOW + 90).expires == NOW + 60 + LIFETIME
    assert heard(now=NOW + 90).at == NOW + 60
    with pytest.raises(Refused, match="lapsed"):
        heard(now=NOW + 121)


@pytest.mark.parametrize("given", [{"issued_at": NOW + 61}, {"boot": int((NOW + 61) * 1000)}])
def test_report_from_the_future_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(Refused, match="future"):
        heard(**given)  # type: ignore[arg-type]


def test_newcomer_takes_the_place_of_whose_report_lapses_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_AUTHORS", 2)
    demand = Demand()
    for author, now in ((ALICE, NOW - 5), (BOB, NOW - 9), (PeerId("carol"), NOW)):
        assert demand.apply(heard(author, now))
    assert [author for author in (ALICE, BOB) if author in demand._held] == [ALICE]
    assert demand.apply(heard(ALICE, count=2))
    assert len(demand) == 2


def test_reports_take_so_many_bytes_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    size = heard().size
    monkeypatch.setattr(module, "MAX_BYTES", 3 * size)
    demand = Demand()
    for number in range(9):
        assert demand.apply(heard(PeerId(f"peer-{number}"), issued_at=NOW - number))
        assert demand._bytes == size * len(demand) <= 3 * size
    demand.expire(NOW + LIFETIME)
    assert demand._bytes == len(demand) == 0


def test_no_report_is_kept_as_it_came() -> None:
    payload = encode(report())
    one = read(ALICE, payload, NOW)
    assert payload not in [getattr(one, name) for name in one.__slots__]
    assert one.digest != heard(rate=9.0).digest


@pytest.mark.parametrize(("role", "most"), [("member", 600.0), ("client", 60.0)])
def test_single_author_counts_so_much_at_most(role: Any, most: float) -> None:
    demand = Demand()
    demand.apply(read(ALICE, encode(report(rate=1e6)), NOW, role=role))
    assert demand.totals(NOW) == {M: most}
    assert demand.totals(NOW + HALF_LIFE / 2)[M] == pytest.approx(most / math.sqrt(2))
    demand.apply(heard(BOB, rate=2.0))
    assert demand.totals(NOW) == {M: most + 2.0}


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_remote_error(data: bytes) -> None:
    with suppress(RemoteError):
        read(ALICE, data, NOW)


@pytest.mark.parametrize(
    "rates", [[{"model": "m", "rate": float("nan")}], [{"model": "m", "rate": -1.0}],
              [{"model": "", "rate": 1.0}], [{"model": "x" * 257, "rate": 1.0}],
              [{"model": "m", "rate": 1.0}] * 33]
)  # fmt: skip
def test_rates_out_of_bounds_are_refused(rates: list[object]) -> None:
    data = {"sequence": [1, 1], "issued_at": NOW, "lifetime": 60.0, "rates": rates}
    with pytest.raises(RemoteError):
        read(ALICE, encode(data), NOW)


REPORTS = st.lists(
    st.tuples(
        st.sampled_from([ALICE, BOB, PeerId("carol")]),
        st.integers(1, 4),
        st.floats(0, 100),
        st.floats(-50, 50),
    ).map(lambda one: heard(one[0], count=one[1], rate=one[2], issued_at=NOW + one[3])),
    max_size=8,
)


@given(REPORTS, st.randoms(use_true_random=False), st.floats(0, 200))
def test_order_and_repetition_change_nothing(
    reports: list[Heard], rng: Random, later: float
) -> None:
    shuffled = reports * 2
    rng.shuffle(shuffled)
    views = []
    for order in (reports, shuffled):
        demand = Demand()
        for one in order:
            demand.apply(one)
        views.append(demand.totals(NOW + later))
    assert views[0] == views[1]


@given(REPORTS, st.floats(0, 100), st.floats(0, 100))
def test_totals_never_grow_by_waiting(reports: list[Heard], first: float, more: float) -> None:
    demand = Demand()
    for one in reports:
        demand.apply(one)
    before, after = demand.totals(NOW + first), demand.totals(NOW + first + more)
    assert all(rate <= before[model] * (1 + 1e-9) for model, rate in after.items())


@given(st.lists(st.floats(0, 2.0), max_size=200))
def test_reports_keep_their_distance_and_the_others_believe_what_is_so(waits: list[float]) -> None:
    tally, reporter, demand = Tally(), Reporter(1.0), Demand()
    said: list[float] = []
    now = NOW
    for wait in waits:
        now += wait
        tally.count(M, now)
        if (one := reporter.next(tally.rates(now), (), now)) is not None:
            said.append(now)
            demand.apply(read(ALICE, encode(one), now))
    assert all(b - a >= GAP for a, b in itertools.pairwise(said))
    end = now + GAP
    if (one := reporter.next(tally.rates(end), (), end)) is not None:
        demand.apply(read(ALICE, encode(one), end))
    mine, theirs = tally.rates(end).get(M, 0.0), demand.totals(end).get(M, 0.0)
    assert abs(mine - theirs) <= max(0.56, theirs / 4 + 0.06)
