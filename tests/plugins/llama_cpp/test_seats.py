from __future__ import annotations

from pathlib import Path

import numpy as np
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.seats import Seats, Sitter

from p2p_mesh.testing.models import write_model

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


def test_fresh_takes_no_snapshot_either(context: Context) -> None:
    seats = Seats(context, 2)
    slot, sitter = seated(context, seats, LONG)
    read(context, slot, sitter)
    seats.save(slot)
    later = Sitter([*LONG, 5])
    assert seats.take(later, fresh=True) is not None
    assert later.read == 0


def test_what_was_dropped_is_not_there(context: Context) -> None:
    seats = Seats(context, 1)
    slot, sitter = seated(context, seats, LONG)
    read(context, slot, sitter)
    seats.drop(slot)
    assert seated(context, seats, [*LONG, 5])[1].read == 0


def test_a_snapshot_is_not_overwritten_by_a_copy(tmp_path: Path) -> None:
    """A copy between slots is carried out with the next call: it must not be asked for where a
    snapshot has more.
    """
    write_model(tmp_path / "hybrid.gguf", kind="hybrid")
    model = Model(str(tmp_path / "hybrid.gguf"), name="hybrid", progress=lambda _: None)
    context = Context(model, Plan(context=256, slots=2, threads=1, rows=48))
    seats = Seats(context, 2)
    slot, sitter = seated(context, seats, LONG)
    read(context, slot, sitter)
    seats.save(slot)
    seats.drop(slot)
    begun, other = seated(context, seats, LONG[:70])
    other.read = 0
    context.forget(begun)
    read(context, begun, other)
    place, later = seated(context, seats, [*LONG, 5])
    assert (place, later.read) == (1 - begun, len(LONG))
    context.rows.clear()
    row = context.rows.add(place, later.read, [5], outputs=1)
    context.decode()
    found = context.logits(row).copy()
    alone = Context(model, Plan(context=256, slots=1, threads=1, rows=48))
    fresh = Sitter([*LONG])
    read(alone, 0, fresh)
    alone.rows.clear()
    row = alone.rows.add(0, len(LONG), [5], outputs=1)
    alone.decode()
    assert np.array_equal(found, alone.logits(row))


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
