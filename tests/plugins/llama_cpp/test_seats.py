from __future__ import annotations

from meshnode_llama_cpp.context import Context
from meshnode_llama_cpp.seats import Seats, Sitter

LONG = [1, *range(10, 110)]


def read(context: Context, slot: int, sitter: Sitter) -> None:
    """Puts what is not there yet of a sequence into its slot."""
    while sitter.read < len(sitter.keys):
        now = sitter.keys[sitter.read : sitter.read + 48]
        context.rows.clear()
        context.rows.add(slot, sitter.read, now, outputs=0)
        context.decode()
        sitter.read += len(now)


def seated(context: Context, seats: Seats, keys: list[int]) -> tuple[int, Sitter]:
    sitter = Sitter(keys)
    slot = seats.take(sitter)
    assert slot is not None
    return slot, sitter


def test_what_has_gone_is_still_there(context: Context) -> None:
    seats = Seats(context, 2)
    slot, sitter = seated(context, seats, LONG)
    read(context, slot, sitter)
    seats.leave(slot)
    again, later = seated(context, seats, [*LONG, 5, 6])
    assert (again, later.read) == (slot, len(LONG))


def test_the_last_token_is_read_again(context: Context) -> None:
    seats = Seats(context, 2)
    slot, sitter = seated(context, seats, LONG)
    read(context, slot, sitter)
    seats.leave(slot)
    assert seated(context, seats, list(LONG))[1].read == len(LONG) - 1


def test_a_live_sequence_lends_its_beginning(context: Context) -> None:
    seats = Seats(context, 2)
    slot, sitter = seated(context, seats, LONG)
    read(context, slot, sitter)
    other, later = seated(context, seats, [*LONG[:90], 5])
    assert (other, later.read) == (1 - slot, 90)
    assert seats.is_full


def test_fresh_takes_nothing_over(context: Context) -> None:
    seats = Seats(context, 1)
    slot, sitter = seated(context, seats, LONG)
    read(context, slot, sitter)
    seats.leave(slot)
    later = Sitter([*LONG, 5])
    assert seats.take(later, fresh=True) == slot
    assert later.read == 0


def test_a_snapshot_serves_another_slot(context: Context) -> None:
    seats = Seats(context, 2)
    slot, sitter = seated(context, seats, LONG)
    read(context, slot, sitter)
    seats.save(slot)
    seats.leave(slot)
    for _ in range(2):
        place, other = seated(context, seats, [1, 7, 8])
        read(context, place, other)
    assert seats.is_full
    seats.leave(0)
    assert seated(context, seats, [*LONG, 9])[1].read == len(LONG)
