"""Each expert has a home, and parts of one size are as good as each other."""

from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.experts.dealing import deal


def test_experts_are_dealt_from_the_most_used_to_the_least() -> None:
    hand = deal([(1, 4, 3, 2)], 2, groups=1, overlap=1)
    (((dealt),),) = hand.layers
    assert dealt.order == (1, 2, 3, 0)
    assert list(map(set, dealt.homes)) == [{1, 0}, {2, 3}]
    assert hand.least == 2
    assert hand.part(0, 2) == ((0, 1),)
    assert hand.part(1, 3) == ((1, 2, 3),)  # and the most used of the rest


def test_who_got_less_in_one_layer_gets_more_in_the_next() -> None:
    hand = deal([(9, 1), (9, 1)], 2, groups=1, overlap=1)
    assert [[*home] for layer in hand.layers for home in layer[0].homes] == [[0], [1], [1], [0]]


def test_groups_are_dealt_each_by_itself() -> None:
    hand = deal([(4, 3, 2, 1)], 2, groups=2, overlap=1)
    assert hand.least == 2
    for number in range(2):
        (chosen,) = hand.part(number, 2)
        assert [one // 2 for one in chosen] == [0, 1]


@given(st.lists(st.floats(0, 1000), min_size=4, max_size=4).map(tuple),
       st.integers(1, 6), st.integers(1, 2))  # fmt: skip
def test_every_expert_is_at_home_on_as_many_parts_as_wanted(
    masses: tuple[float, ...], parts: int, overlap: int
) -> None:
    hand = deal([masses], parts, groups=1, overlap=min(overlap, parts))
    homes = hand.layers[0][0].homes
    for expert in range(4):
        assert sum(expert in home for home in homes) == min(overlap, parts)
    sizes = [len(home) for home in homes]
    assert max(sizes) - min(sizes) <= 1
