from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.share import Share


def test_one_alone_may_take_all() -> None:
    share = Share(8)
    assert [share.take("a") for _ in range(9)] == [True] * 8 + [False]


def test_one_who_takes_much_leaves_room_for_others() -> None:
    share = Share(8)
    assert share.take("b")
    assert [share.take("a") for _ in range(8)].count(True) == 4
    assert [share.take("b") for _ in range(8)].count(True) == 3
    assert share.total == 8


def test_a_host_takes_no_more_by_naming_users() -> None:
    share = Share(8)
    assert share.take("b")
    assert [share.take(f"a/{user}") for user in range(8)].count(True) == 4


def test_what_is_given_back_can_be_taken() -> None:
    share = Share(1)
    assert share.take("a")
    assert not share.take("b")
    share.give("a")
    assert share.take("b")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_never_more_than_there_are(moves: list[tuple[str, bool]]) -> None:
    share = Share(6)
    held: list[str] = []
    for asker, gives in moves:
        if gives and asker in held:
            held.remove(asker)
            share.give(asker)
        elif share.take(asker):
            held.append(asker)
        assert share.total == len(held) <= 6
