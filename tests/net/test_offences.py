"""What peers did wrong is told, but not over and over."""

from __future__ import annotations

import trio

from p2p_mesh.core.names import PeerId
from p2p_mesh.errors import Refused, RemoteError
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.net.offences import MAX_PEERS, MAX_WARNINGS, QUIET, Offences

A, B = PeerId("a"), PeerId("b")


async def test_warnings_are_rare(autojump_clock: trio.testing.MockClock) -> None:
    entries: list[Entry] = []
    offences = Offences(Journal(entries.append))
    for _ in range(100):
        offences.note(A, "x")
    offences.note(B, "y")
    await trio.sleep(QUIET)
    offences.note(A, "z")
    warnings = [entry.message for entry in entries if entry.level == "warning"]
    assert warnings == ["a: x", "b: y", "a: z"]
    assert (offences.count(A), offences.count(B)) == (101, 1)


async def test_new_names_do_not_flood_the_journal() -> None:
    entries: list[Entry] = []
    offences = Offences(Journal(entries.append))
    for place in range(2 * MAX_PEERS):
        offences.note(PeerId(str(place)), "x")
    warnings = [entry for entry in entries if entry.level == "warning"]
    assert len(warnings) == MAX_WARNINGS
    assert len(offences._counts) == MAX_PEERS


async def test_refusals_are_counted_by_their_reason() -> None:
    entries: list[Entry] = []
    offences = Offences(Journal(entries.append))
    offences.refuse(A, "admission", Refused("it has ended", reason="expired"))
    offences.refuse(B, "admission", RemoteError("no message"))
    offences.note(B, "odd")
    assert offences.reasons == {"expired": 1, "malformed": 1, "refused": 1}
    assert [entry.fields["reason"] for entry in entries] == ["expired", "malformed", "refused"]
    assert entries[0].message == "a: admission: it has ended"
