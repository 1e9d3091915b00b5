"""Which node starts a wanted model, and which stops: alone, and in a mesh that is simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.placement.standby import (
    COLD,
    GRACE,
    KEEP,
    LASTING,
    LEAVING,
    TURN,
    Action,
    Load,
    Own,
    Since,
    Site,
    Unload,
    View,
    plan,
    score,
    watch,
)

M, X = ModelId("m"), ModelId("x")
ME = PeerId("me")


def peers(count: int, model: ModelId = M) -> list[PeerId]:
    """Names in the order of the model's rendezvous, the first first."""
    names = [PeerId(f"peer-{number}") for number in range(count)]
    return sorted(names, key=lambda peer: score(model, peer), reverse=True)


def planned(view: View, age: float) -> tuple[Action, ...]:
    """What is planned when everything has been as it is for `age` seconds."""
    return plan(replace(view, now=view.now + age), watch({}, view))


WANTED = View(me=ME, now=0.0, rates={M: 1.0}, own=(Own(M, "standby"),))


def test_wanted_model_that_nobody_serves_is_loaded() -> None:
    assert planned(WANTED, GRACE - 0.1) == ()
    assert planned(WANTED, GRACE) == (Load(M),)


@pytest.mark.parametrize(
    "change",
    [
        {"rates": {M: 0.4}},
        {"rates": {}},
        {"own": (Own(M, "standby", is_resting=True),)},
        {"own": (Own(X, "standby"),)},
        {"own": (Own(M, "loading"),)},
        {"own": (Own(M, "standby"), Own(X, "loading", is_planned=True))},
        {"sites": (Site(PeerId("a"), serves={M: 2}),)},
        {"sites": (Site(PeerId("a"), loads=frozenset({M})),)},
        {"elsewhere": {M: 4}},
    ],
    ids=["cold", "unasked", "resting", "another file", "loads", "busy", "served", "being loaded",
         "endpoint"],
)  # fmt: skip
def test_nothing_is_loaded_without_need(change: Mapping[str, object]) -> None:
    assert planned(replace(WANTED, **change), 1000.0) == ()  # type: ignore[arg-type]


def test_hottest_of_several_is_loaded_first() -> None:
    view = replace(WANTED, rates={M: 1.0, X: 2.0}, own=(Own(M, "standby"), Own(X, "standby")))
    assert planned(view, 100.0) == (Load(X),)


def test_each_waits_its_turn_and_those_without_room_have_none() -> None:
    first, second, third = peers(3)
    sites = (Site(first, holds={M: 10}, free=20), Site(second, holds={M: 10}, free=20))
    view = replace(WANTED, me=third, sites=sites)
    assert planned(view, GRACE + 2 * TURN - 0.1) == ()
    assert planned(view, GRACE + 2 * TURN) == (Load(M),)
    full = replace(view, sites=(replace(sites[0], free=9), replace(sites[1], holds={})))
    assert planned(full, GRACE) == (Load(M),)


BUSY = View(
    me=ME, now=0.0, rates={M: 12.0, X: 1.0}, own=(Own(M, "standby"),),
    sites=(Site(PeerId("a"), serves={M: 2}), Site(PeerId("b"), serves={X: 1})),
)  # fmt: skip


def test_model_with_three_times_the_load_of_the_coldest_gets_one_more() -> None:
    assert planned(BUSY, LASTING - 0.1) == ()
    assert planned(BUSY, LASTING) == (Load(M),)


@pytest.mark.parametrize(
    "change",
    [
        {"rates": {M: 10.0, X: 1.0}},
        {"rates": {M: 12.0, X: 2.1}},
        {"sites": (Site(PeerId("a"), serves={M: 9}),)},
        {"sites": (*BUSY.sites, Site(PeerId("c"), loads=frozenset({M})))},
    ],
    ids=["ten a minute", "no three times", "next to nothing a slot", "one more comes"],
)
def test_no_more_is_loaded_than_is_needed(change: Mapping[str, object]) -> None:
    assert planned(replace(BUSY, **change), 1000.0) == ()  # type: ignore[arg-type]


def test_only_model_is_measured_against_an_idle_one() -> None:
    alone = replace(BUSY, sites=(Site(PeerId("a"), serves={M: 2}),))
    assert planned(alone, LASTING) == (Load(M),)


IDLE = View(me=ME, now=KEEP, rates={}, own=(Own(M, "ready", slots=2, is_planned=True),))


def test_model_that_nobody_wants_is_unloaded_in_time() -> None:
    assert planned(IDLE, COLD - 1) == ()
    assert planned(IDLE, COLD) == (Unload(M),)
    young = replace(IDLE, own=(replace(IDLE.own[0], since=KEEP),))
    assert planned(young, KEEP - 1) == ()
    assert planned(young, KEEP) == (Unload(M),)


def test_what_its_owner_loaded_stays() -> None:
    assert planned(replace(IDLE, own=(Own(M, "ready", slots=2),)), 10_000) == ()


def test_last_server_of_a_wanted_model_stays() -> None:
    assert planned(replace(IDLE, rates={M: 0.1}), 10_000) == ()
    ended = replace(IDLE, rates={M: 0.1}, sites=(Site(PeerId("a"), holds={M: 1}),))
    assert planned(ended, 10_000) == ()


def test_of_two_that_could_both_go_the_second_does() -> None:
    first, second = peers(2)
    view = replace(IDLE, rates={M: 0.2})
    assert planned(replace(view, me=first, sites=(Site(second, serves={M: 2}),)), 10_000) == ()
    goes = replace(view, me=second, sites=(Site(first, serves={M: 2}),))
    assert planned(goes, COLD) == (Unload(M),)


def test_those_that_could_go_go_one_after_the_other() -> None:
    first, second, third = peers(3)
    view = replace(IDLE, rates={M: 0.2}, me=second)
    view = replace(view, sites=(Site(first, serves={M: 2}), Site(third, serves={M: 2})))
    assert planned(view, COLD + LEAVING - 1) == ()
    assert planned(view, COLD + LEAVING) == (Unload(M),)


def test_model_that_is_still_needed_is_not_spare() -> None:
    first, second = peers(2)
    view = replace(IDLE, me=second, rates={M: 4.0}, sites=(Site(first, serves={M: 2}),))
    assert planned(view, 10_000) == ()


def test_sign_that_was_gone_begins_anew() -> None:
    since = watch({}, WANTED)
    since = watch(since, replace(WANTED, now=1.0, rates={}))
    assert since == {}
    assert watch(since, replace(WANTED, now=2.0)) == {("unserved", M): 2.0}


RATES = st.dictionaries(st.sampled_from([M, X]), st.floats(0, 200), max_size=2)
SITES = st.lists(
    st.builds(
        Site,
        peer=st.sampled_from(peers(6)),
        serves=st.dictionaries(st.sampled_from([M, X]), st.integers(0, 8), max_size=2),
        loads=st.frozensets(st.sampled_from([M, X]), max_size=1),
        holds=st.dictionaries(st.sampled_from([M, X]), st.integers(1, 9), max_size=2),
        free=st.integers(0, 9),
    ),
    max_size=5,
    unique_by=lambda site: site.peer,
)
OWN = st.tuples(
    *(
        st.builds(
            Own, st.just(model), st.sampled_from(["standby", "loading", "ready"]),
            slots=st.integers(1, 8), is_planned=st.booleans(), is_resting=st.booleans(),
            since=st.floats(0, 1000),
        )
        for model in (M, X)
    )
)  # fmt: skip
VIEWS = st.builds(
    View, me=st.just(ME), now=st.just(1000.0), rates=RATES, own=OWN, sites=SITES.map(tuple)
)


def carried_out(view: View, actions: tuple[Action, ...]) -> View:
    states = {one.model: "loading" if isinstance(one, Load) else "standby" for one in actions}
    own = tuple(
        replace(one, state=states[one.model], is_planned=True) if one.model in states else one  # type: ignore[arg-type]
        for one in view.own
    )
    return replace(view, own=own)


@given(VIEWS, st.floats(0, 1000))
def test_plan_applied_twice_is_one_plan(view: View, age: float) -> None:
    since = watch({}, view)
    later = replace(view, now=view.now + age)
    actions = plan(later, since)
    assert plan(later, since) == actions
    done = carried_out(later, actions)
    again = plan(done, watch(watch(since, later), done))
    assert {one.model for one in again}.isdisjoint({one.model for one in actions})
    assert not (any(isinstance(one, Load) for one in actions)
                and any(isinstance(one, Load) for one in again))  # fmt: skip


@given(VIEWS, st.floats(0, 1000))
def test_order_of_sites_and_files_does_not_matter(view: View, age: float) -> None:
    turned = replace(view, own=view.own[::-1], sites=view.sites[::-1])
    assert planned(view, age) == planned(turned, age)


# A mesh under time: each node looks each second at what all said a second ago.


@dataclass
class Simulated:
    peer: PeerId
    holds: frozenset[ModelId]
    given: frozenset[ModelId] = frozenset()
    loading_takes: float = 5.0
    is_broken: bool = False
    """Its loads fail, after the time that they take."""
    served: dict[ModelId, float] = field(default_factory=dict)
    loading: dict[ModelId, float] = field(default_factory=dict)
    resting: dict[ModelId, float] = field(default_factory=dict)
    since: Since = field(default_factory=dict)
    log: list[tuple[float, Action]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.served = dict.fromkeys(self.given, 0.0)

    def site(self) -> Site:
        return Site(
            self.peer, serves=dict.fromkeys(self.served, 2), loads=frozenset(self.loading),
            holds=dict.fromkeys(self.holds, 1), free=10,
        )  # fmt: skip

    def own(self, now: float) -> tuple[Own, ...]:
        return tuple(
            Own(
                model,
                "ready" if model in self.served
                else "loading" if model in self.loading else "standby",
                slots=2, is_planned=model not in self.given,
                is_resting=self.resting.get(model, 0.0) > now,
                since=self.served.get(model, 0.0),
            )
            for model in sorted(self.holds)
        )  # fmt: skip

    def step(self, now: float, rates: Mapping[ModelId, float], sites: tuple[Site, ...]) -> None:
        for model, begun in tuple(self.loading.items()):
            if now - begun >= self.loading_takes:
                del self.loading[model]
                if self.is_broken:
                    self.resting[model] = now + 300
                else:
                    self.served[model] = begun
        view = View(me=self.peer, now=now, rates=rates, own=self.own(now),
                    sites=tuple(one for one in sites if one.peer != self.peer))  # fmt: skip
        self.since = watch(self.since, view)
        for action in plan(view, self.since):
            self.log.append((now, action))
            if isinstance(action, Load):
                self.loading[action.model] = now
            else:
                del self.served[action.model]


def simulate(
    nodes: list[Simulated], rates: Mapping[ModelId, float], *, start: int = 0, end: int,
    pace: int = 1, always: Callable[[], bool] = lambda: True,
) -> None:  # fmt: skip
    heard = tuple(node.site() for node in nodes)
    for now in range(start, end, pace):
        said = tuple(node.site() for node in nodes)
        for node in nodes:
            node.step(float(now), rates, heard)
        heard = said
        assert always()


def holders(count: int, **given: object) -> list[Simulated]:
    return [Simulated(peer, frozenset({M}), **given) for peer in peers(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize("takes", [0.0, 5.0, 120.0])
def test_exactly_one_of_five_starts_within_ten_seconds(takes: float) -> None:
    nodes = holders(5, loading_takes=takes)
    simulate(nodes, {M: 1.0}, end=600)
    assert [len(node.log) for node in nodes] == [1, 0, 0, 0, 0]
    assert nodes[0].log[0][0] <= 4.0


def test_next_takes_over_when_the_first_fails() -> None:
    nodes = holders(3)
    nodes[0].is_broken = True
    simulate(nodes, {M: 1.0}, end=60)
    assert [[type(action) for _, action in node.log] for node in nodes] == [[Load], [Load], []]
    assert nodes[1].log[0][0] - nodes[0].log[0][0] <= nodes[0].loading_takes + GRACE + TURN + 3


def test_first_that_is_silent_is_not_waited_for() -> None:
    nodes = holders(3)
    silent = nodes[0]
    silent.step = lambda *_: None  # type: ignore[method-assign]
    simulate(nodes, {M: 1.0}, end=30)
    assert [len(node.log) for node in nodes] == [0, 1, 0]
    assert nodes[1].log[0][0] <= 10.0


def test_busy_model_is_spread_and_gathered_again() -> None:
    nodes = holders(4)
    simulate(nodes, {M: 30.0}, end=600)
    assert sum(M in node.served for node in nodes) == 4
    simulate(nodes, {M: 1.0}, start=600, end=1800)
    assert [M in node.served for node in nodes] == [True, False, False, False]
    simulate(nodes, {}, start=1800, end=2400)
    assert not any(node.served for node in nodes)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([{M}, {X}, {M, X}]), st.booleans()),
             min_size=2, max_size=6),
    st.lists(st.tuples(st.floats(0, 120), st.floats(0, 120)), min_size=1, max_size=3),
)  # fmt: skip
def test_nothing_flaps_whatever_is_wanted(
    shapes: list[tuple[set[ModelId], bool]], phases: list[tuple[float, float]]
) -> None:
    nodes = [
        Simulated(peer, frozenset(holds), frozenset(holds) if is_given else frozenset())
        for peer, (holds, is_given) in zip(peers(6), shapes, strict=False)
    ]
    for number, (m, x) in enumerate(phases):
        simulate(nodes, {M: m, X: x}, start=number * 200, end=number * 200 + 200, pace=4)
    begun = len(phases) * 200
    rates = {M: phases[-1][0], X: phases[-1][1]}
    simulate(nodes, rates, start=begun, end=begun + 2000, pace=4)
    settled = begun + 1200
    for node in nodes:
        assert all(when < settled for when, _ in node.log)
        assert node.given <= node.served.keys()
        for model in (M, X):
            moves = [(when, action) for when, action in node.log if action.model == model]
            for (before, first), (after, second) in pairwise(moves):
                assert type(first) is not type(second)
                assert after - before >= (KEEP if isinstance(first, Load) else 0)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6), st.sets(st.integers(0, 5)),
    st.lists(st.floats(0.05, 60), min_size=1, max_size=3),
)  # fmt: skip
def test_wanted_model_never_loses_its_last_server(
    count: int, given_at: set[int], phases: list[float]
) -> None:
    nodes = holders(count)
    for number in given_at & set(range(count)):
        nodes[number].given = frozenset({M})
        nodes[number].served = {M: 0.0}
    simulate(nodes, {M: 30.0}, end=400, pace=4)
    for number, rate in enumerate(phases):
        simulate(
            nodes, {M: rate}, start=400 + number * 600, end=1000 + number * 600, pace=4,
            always=lambda: any(node.served for node in nodes),
        )  # fmt: skip
