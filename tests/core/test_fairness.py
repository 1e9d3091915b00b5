"""Who is next, and who is sent away."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2p_mesh.core.fairness import RESUMED, Turn, Turns


def join(turns: Turns, *askers: str) -> list[Turn]:
    return [turns.join(asker)[0] for asker in askers]


def states(turns: list[Turn]) -> list[str]:
    return [turn.state for turn in turns]


def served(turns: Turns, first: Turn) -> str:
    """Who comes, one after the other, each when the one before is over."""
    order, turn = "", turns.leave(first)
    while turn is not None:
        order += turn.asker
        turn = turns.leave(turn)
    return order


def test_slots_are_taken_while_there_are_any() -> None:
    turns = Turns(2, 8)
    assert states(join(turns, "a", "a", "a")) == ["holding", "holding", "waiting"]
    assert (turns.active, turns.queued) == (2, 1)


def test_askers_take_turns() -> None:
    turns = Turns(1, 8)
    first, *_ = join(turns, "a", "a", "a", "a", "b", "b", "c")
    assert served(turns, first) == "abcaba"
    assert (turns.active, turns.queued) == (0, 0)


def test_oldest_of_an_asker_comes_first() -> None:
    turns = Turns(1, 8)
    first, second, third = join(turns, "a", "a", "a")
    assert turns.leave(first) is second
    assert turns.leave(second) is third


def test_answer_that_goes_on_comes_before_the_new_ones_of_its_asker() -> None:
    turns = Turns(1, 8)
    first, *_ = join(turns, "a", "b", "a")
    resumed, _ = turns.join("a", is_resumed=True)
    other = turns.leave(first)
    assert other is not None
    assert other.asker == "b"
    assert turns.leave(other) is resumed


def test_whoever_leaves_the_queue_is_not_called() -> None:
    turns = Turns(1, 8)
    first, second, third = join(turns, "a", "b", "c")
    assert turns.leave(second) is None
    assert (second.state, turns.queued) == ("over", 1)
    assert turns.leave(first) is third


def test_turn_that_is_over_ends_once() -> None:
    turns = Turns(1, 8)
    first, second = join(turns, "a", "b")
    assert turns.leave(first) is second
    assert turns.leave(first) is None
    assert turns.active == 1


def test_queue_is_bounded() -> None:
    turns = Turns(1, 3)
    assert states(join(turns, *"aaaaa")) == ["holding", *["waiting"] * 3, "refused"]
    assert turns.queued == 3


def test_newcomer_displaces_the_newest_of_the_greediest() -> None:
    turns = Turns(1, 3)
    asked = join(turns, *"aaaa")
    turn, displaced = turns.join("b")
    assert turn.state == "waiting"
    assert displaced is asked[-1]
    assert displaced.state == "refused"
    assert turns.leave(displaced) is None
    assert turns.queued == 3


def test_queue_ends_up_shared() -> None:
    turns = Turns(1, 6)
    join(turns, *"aaaaaaa")
    other = join(turns, *"bbbbbb")
    assert states(other) == ["waiting"] * 3 + ["refused"] * 3


def test_newcomer_is_refused_where_all_have_little() -> None:
    turns = Turns(1, 3)
    join(turns, *"xabc")
    assert states(join(turns, "d", "a")) == ["refused", "refused"]


def test_users_of_one_host_have_its_share_together() -> None:
    turns = Turns(1, 6)
    join(turns, "x")
    flood = join(turns, *(f"a/{user}" for user in range(6)))
    assert states(join(turns, "b", "b", "b", "b")) == ["waiting"] * 3 + ["refused"]
    assert states(flood) == ["waiting"] * 3 + ["refused"] * 3
    assert states(join(turns, "a/new")) == ["refused"]


def test_users_of_a_host_take_turns_in_the_turns_of_the_host() -> None:
    turns = Turns(1, 8)
    first, *_ = join(turns, "x", "a/1", "a/1", "a/2", "b", "b", "b")
    order, turn = list[str](), turns.leave(first)
    while turn is not None:
        order.append(turn.asker)
        turn = turns.leave(turn)
    assert order == ["a/1", "b", "a/2", "b", "a/1", "b"]


def test_user_of_a_host_does_not_keep_out_another_one() -> None:
    turns = Turns(1, 3)
    asked = join(turns, *["a/1"] * 4)
    turn, displaced = turns.join("a/2")
    assert (turn.state, displaced) == ("waiting", asked[-1])
    assert states(join(turns, "a/2")) == ["refused"]


def test_answers_that_go_on_are_bounded_apart() -> None:
    turns = Turns(1, 2)
    join(turns, *"aaa")
    resumed = [turns.join("a", is_resumed=True)[0] for _ in range(2 * RESUMED + 1)]
    assert states(resumed) == ["waiting"] * 2 * RESUMED + ["refused"]
    assert turns.queued == 2 * (RESUMED + 1)


def test_all_that_wait_can_be_sent_away() -> None:
    turns = Turns(1, 4)
    first, *others = join(turns, *"abab")
    others.append(turns.join("b", is_resumed=True)[0])
    assert {*turns.clear()} == {*others}
    assert states(others) == ["refused"] * 4
    assert (turns.active, turns.queued, turns.leave(first)) == (1, 0, None)


class Serving(RuleBasedStateMachine):
    """Arrivals, ends and leavers in any order, beside a plain account of them."""

    SLOTS, BOUND = 2, 4

    def __init__(self) -> None:
        super().__init__()
        self.turns = Turns(self.SLOTS, self.BOUND)
        self.known: list[Turn] = []
        self.passed: Counter[Turn] = Counter()

    @rule(asker=st.sampled_from(["a", "b", "c", "d/1", "d/2", "d/3"]), is_resumed=st.booleans())
    def arrive(self, asker: str, is_resumed: bool) -> None:
        queue = [turn for turn in self.of("waiting") if turn.is_resumed == is_resumed]
        had = Counter(one.asker for one in queue)
        hosts = Counter(one.host for one in queue)
        turn, displaced = self.turns.join(asker, is_resumed=is_resumed)
        self.known.append(turn)
        if displaced is not None:
            of = hosts[displaced.host] > hosts[turn.host] + 1
            assert of or (displaced.host == turn.host and had[displaced.asker] > had[asker] + 1)
        if turn.state == "refused":  # no host had clearly more, nor had another user of its own
            assert max(hosts.values()) <= hosts[turn.host] + 1
            assert all(had[one.asker] <= had[asker] + 1 for one in queue if one.host == turn.host)

    @precondition(lambda self: self.of("holding"))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        waiting = self.of("waiting")
        following = self.turns.leave(data.draw(st.sampled_from(self.of("holding"))))
        assert (following is None) == (not waiting)
        for turn in self.of("waiting"):
            assert following is not None
            if following.asker != turn.asker:
                self.passed[turn] += 1

    @precondition(lambda self: self.of("waiting"))
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        assert self.turns.leave(data.draw(st.sampled_from(self.of("waiting")))) is None

    def of(self, state: str) -> list[Turn]:
        return [turn for turn in self.known if turn.state == state]

    @invariant()
    def no_slot_is_lost(self) -> None:
        assert self.turns.active == len(self.of("holding")) <= self.SLOTS
        assert self.turns.queued == len(self.of("waiting"))
        if self.turns.queued:
            assert self.turns.active == self.SLOTS

    @invariant()
    def queue_is_bounded(self) -> None:
        assert len([one for one in self.of("waiting") if not one.is_resumed]) <= self.BOUND
        assert self.turns.queued <= (RESUMED + 1) * self.BOUND

    @invariant()
    def nobody_starves(self) -> None:
        # Before each request of its own asker, two others of its host may come, and before each
        # of these three other hosts; and it stands behind at most so many of its own.
        most = (3 * 3 + 2) * (RESUMED + 1) * self.BOUND
        assert all(count <= most for count in self.passed.values())


Serving.TestCase.settings = settings(deadline=None)
TestServing = Serving.TestCase


@given(st.integers(1, 40))
def test_one_request_waits_for_one_round_at_most(flood: int) -> None:
    turns = Turns(1, 64)
    first, *_ = join(turns, *["a"] * flood, "b")
    if flood == 1:
        assert served(turns, first) == "b"
    else:
        assert served(turns, first).index("b") == 1
