from hypothesis import given
from hypothesis import strategies as st
from meshnode_llama_cpp.prefixes import COPY, Held, Rules, Seat, Snapshots, common, seat, usable

KEYS = st.lists(st.integers(0, 3), max_size=12)
LONG = list(range(1000, 1000 + 300))


@given(KEYS, KEYS)
def test_common_counts_the_same_beginning(one: list[int], other: list[int]) -> None:
    count = common(one, other)
    assert one[:count] == other[:count]
    assert count in (len(one), len(other)) or one[count] != other[count]


@given(KEYS.filter(bool), KEYS, st.booleans())
def test_what_is_used_is_there_and_the_last_token_is_computed(
    prompt: list[int], keys: list[int], trims: bool
) -> None:
    count = usable(prompt, Held(keys=keys), Rules(trims=trims))
    assert count < len(prompt)
    assert prompt[:count] == keys[:count]
    assert trims or count in (0, len(keys))


def test_a_window_is_cut_back_while_all_its_cells_are_there() -> None:
    rules = Rules(cells=300)
    assert usable(LONG[:100], Held(keys=LONG, highest=300), rules) == 99
    assert usable(LONG[:100], Held(keys=LONG, highest=301), rules) == 0
    assert usable(LONG[:100], Held(keys=LONG[:120], highest=301), rules) == 0


def test_what_goes_on_where_the_slot_stands_needs_no_cut() -> None:
    assert usable([*LONG, 1, 2], Held(keys=LONG, highest=999), Rules(cells=16)) == 300


def test_a_state_is_used_at_its_very_end_only() -> None:
    rules = Rules(trims=False)
    assert usable([*LONG, 1], Held(keys=LONG), rules) == 300
    assert usable([*LONG[:299], 1, 2], Held(keys=LONG), rules) == 0


def test_an_image_is_used_whole_or_not() -> None:
    image = [-7] * 10
    held = Held(keys=[1, 2, *image, 3])
    assert usable([1, 2, *image, 4], held, Rules()) == 12
    assert usable([1, 2, *image[:4], 5, 6], held, Rules()) == 2


def test_a_prompt_goes_where_its_beginning_is() -> None:
    slots = [Held(), Held(keys=LONG, used=1)]
    assert seat([*LONG, 1], slots, Rules()) == Seat(1, 300)


def test_a_new_prompt_takes_an_empty_slot_then_the_one_longest_unused() -> None:
    other = Held(keys=[1, 2, 3], used=5)
    assert seat(LONG, [other, Held()], Rules()) == Seat(1)
    assert seat(LONG, [other, Held(keys=[4, 5], used=4)], Rules()) == Seat(1)


def test_a_common_beginning_is_copied_and_the_other_conversation_stays() -> None:
    slots = [Held(keys=[*LONG[:100], *range(500)], used=9), Held(keys=[7], used=1)]
    assert seat([*LONG[:100], 1], slots, Rules()) == Seat(1, 100, source=0)


def test_a_short_common_beginning_is_computed_again() -> None:
    slots = [Held(keys=[*LONG[: COPY - 1], *range(500)], used=9), Held()]
    assert seat(LONG[: COPY + 9], slots, Rules()) == Seat(1)


def test_a_live_sequence_is_copied_from() -> None:
    slots = [Held(keys=LONG, live=True), Held()]
    assert seat([*LONG, 1], slots, Rules()) == Seat(1, 300, source=0)


def test_whoever_begins_like_a_prompt_that_is_read_waits() -> None:
    slots = [Held(keys=LONG[:20], live=True, coming=LONG), Held()]
    assert seat([*LONG, 1], slots, Rules()) is None
    assert seat([*LONG[:50], 1], slots, Rules()) == Seat(1)


def test_nobody_waits_for_what_cannot_be_used_then() -> None:
    slots = [Held(keys=LONG[:20], live=True, coming=LONG), Held()]
    assert seat([*LONG[:100], 1], slots, Rules(cells=200)) == Seat(1)
    assert seat([*LONG, 1], slots, Rules(cells=200)) is None


def test_a_copy_that_moves_much_must_save_much() -> None:
    slots = [Held(keys=[*LONG[:100], *range(500)], used=9), Held()]
    assert seat([*LONG[:100], 1], slots, Rules(copy=101)) == Seat(1)


def test_nobody_is_seated_where_all_slots_are_taken() -> None:
    assert seat(LONG, [Held(live=True)], Rules()) is None


@given(st.data())
def test_a_seat_is_free_and_keeps_what_is_there(data: st.DataObject) -> None:
    helds = st.builds(Held, keys=KEYS, used=st.integers(0, 9), live=st.booleans())
    slots = data.draw(st.lists(helds, min_size=1, max_size=5))
    prompt = data.draw(KEYS.filter(bool))
    found = seat(prompt, slots, Rules())
    if found is None:
        assert all(held.live for held in slots)
        return
    assert not slots[found.slot].live
    origin = found.slot if found.source is None else found.source
    assert list(slots[origin].keys[: found.kept]) == prompt[: found.kept]


def test_the_longest_snapshot_is_found() -> None:
    kept = Snapshots(100)
    kept.keep([1, 2], b"a")
    kept.keep([1, 2, 3], b"b")
    assert kept.find([1, 2, 3, 4]) == (3, b"b")
    assert kept.find([1, 2, 3]) == (2, b"a")
    assert kept.find([2]) is None


def test_snapshots_stay_within_their_bytes() -> None:
    kept = Snapshots(10)
    for place in range(5):
        kept.keep([place], bytes(4))
    assert kept.size == 8
    assert kept.find([0, 1]) is None
    assert kept.wants([9], 10)
    assert not kept.wants([9], 11)
    assert not kept.wants([4], 4)


def test_a_live_state_that_is_ahead_of_its_keys_is_not_copied() -> None:
    keys, rules = list(range(100)), Rules(trims=False)
    ahead = Held(keys=keys, highest=101, live=True)
    assert usable([*keys, 7], ahead, rules) == 0
    assert usable([*keys, 7], Held(keys=keys, highest=100, live=True), rules) == 100
    assert usable([*keys, 7], ahead, Rules()) == 100  # it is cut back
