"""Which piece is asked of whom: every piece comes once, whatever the peers do."""

from __future__ import annotations

from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_mesh.core import artifacts
from p2p_mesh.core.artifacts import (
    CHUNK,
    FAILURES,
    FAIR,
    FIRST_WINDOW,
    WINDOW,
    Data,
    Get,
    Piece,
    Schedule,
    data_frames,
    pieces,
)
from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.core.package import PIECE
from p2p_mesh.core.wire import decode, encode, frame
from p2p_mesh.errors import RemoteError

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")
ONE, TWO = Digest("1" * 64), Digest("2" * 64)


def schedule(count: int = 10, *peers: PeerId) -> Schedule:
    found = Schedule(pieces(ONE, count * PIECE, range(count)), Random(1))
    for peer in peers:
        found.meet(peer, [ONE])
    return found


def asked(found: Schedule, peer: PeerId, now: float = 0.0) -> list[Piece]:
    """Everything that a peer is asked for now."""
    return list(iter(lambda: found.choose(peer, now), None))


def numbers(found: list[Piece]) -> list[int]:
    return [piece.number for piece in found]


def test_pieces_cover_the_file() -> None:
    found = pieces(ONE, 2 * PIECE + 5, range(3))
    assert [(one.offset, one.length) for one in found] == [
        (0, PIECE), (PIECE, PIECE), (2 * PIECE, 5)
    ]  # fmt: skip


def test_pieces_follow_one_another_within_the_window() -> None:
    found = schedule(10, A)
    assert numbers(asked(found, A)) == list(range(FIRST_WINDOW))


def test_window_grows_with_each_good_piece() -> None:
    found = schedule(100, A)
    waiting = asked(found, A)
    for now in range(1, 20):
        assert found.arrived(A, waiting.pop(0), float(now))
        waiting += asked(found, A, float(now))
    assert len(waiting) == WINDOW


def test_two_peers_never_get_the_same_fresh_piece() -> None:
    found = schedule(10, A, B)
    assert numbers(asked(found, A)) == [0, 1]
    assert numbers(asked(found, B)) == [2, 3]


def test_peer_is_asked_for_what_it_holds_only() -> None:
    found = schedule(10, A)
    found.meet(B, [TWO])
    assert asked(found, B) == []
    assert found.is_of_use(A)
    assert not found.is_of_use(B)


def test_rarest_file_goes_first() -> None:
    found = schedule(4, A, B)
    found.add(pieces(TWO, PIECE, [0]))
    found.meet(A, [ONE, TWO])
    assert asked(found, A)[0].file == TWO


def test_sender_of_a_bad_piece_is_asked_no_more_and_its_pieces_go_elsewhere() -> None:
    found = schedule(2, A, B)
    assert numbers(asked(found, A)) == [0, 1]
    found.drop(A)
    assert found.rests_until(A) == inf
    assert found.choose(A, 1e9) is None
    assert not found.is_of_use(A)
    assert numbers(asked(found, B)) == [0, 1]


def test_who_fails_rests_longer_each_time_and_is_given_up() -> None:
    found = schedule(2, A)
    rests = []
    for _ in range(FAILURES):
        found.failed(A, 100.0)
        rests.append(found.rests_until(A) - 100.0)
    assert rests[0] <= 0.5
    assert all(0 < one < inf for one in rests[:-1])
    assert rests[-1] == inf


def test_who_says_when_to_come_again_is_believed() -> None:
    found = schedule(2, A)
    found.failed(A, 100.0, 7.0)
    assert found.rests_until(A) == 107.0
    assert found.choose(A, 106.0) is None
    assert found.choose(A, 107.0) is not None


def test_good_piece_makes_up_for_failures() -> None:
    found = schedule(20, A)
    for now in range(FAILURES * 2):
        piece = found.choose(A, 100.0 * now)
        assert piece is not None
        found.arrived(A, piece, 100.0 * now)
        found.failed(A, 100.0 * now)
    assert found.rests_until(A) < inf


def test_peer_that_lacks_a_file_after_all_is_not_asked_for_it_again() -> None:
    found = schedule(2, A, B)
    piece = found.choose(A, 0.0)
    assert piece is not None
    found.lacks(A, piece)
    assert not found.is_of_use(A)
    assert found.choose(A, 0.0) is None
    assert found.choose(B, 0.0) == piece


def test_stranger_rests_not_and_was_not_met() -> None:
    found = schedule(1)
    assert found.rests_until(A) == -inf
    assert not found.has_met(A)
    found.drop(A)
    assert not found.has_met(A)
    found.meet(B, [])
    assert found.has_met(B)


def test_late_piece_is_asked_of_another_near_the_end() -> None:
    found = schedule(3, A, B)
    slow, fast = asked(found, A), asked(found, B)
    assert numbers(slow) == [0, 1]
    found.arrived(B, fast[0], 1.0)
    assert asked(found, B, FAIR) == []
    # The slow one has sent nothing for so long that another is asked for what it has last.
    assert numbers(asked(found, B, FAIR + 0.1)) == [0, 1]


def test_piece_that_would_come_no_sooner_is_not_asked_twice() -> None:
    found = schedule(6, A, B)
    waiting = {A: asked(found, A), B: asked(found, B)}
    for now in (1.0, 2.0):
        for peer in (A, B):
            found.arrived(peer, waiting[peer].pop(0), now)
    assert numbers(asked(found, A, 2.0)) == [4, 5]
    assert asked(found, B, 2.0) == []


def test_slow_sender_of_many_shares_them() -> None:
    found = schedule(6, A, B)
    slow, fast = asked(found, A), asked(found, B)
    for piece in fast:
        found.arrived(B, piece, 1.0)
    found.arrived(A, slow[0], 60.0)
    assert numbers(asked(found, A, 60.0)) == [4, 5]
    # All that is left is with A, at a minute a piece; what it has last goes first.
    assert numbers(asked(found, B, 60.5)) == [5, 4, 1]


def test_at_most_two_are_asked_for_a_piece() -> None:
    found = schedule(1, A, B, C)
    assert asked(found, A)
    assert asked(found, B, 60.0)
    assert asked(found, C, 600.0) == []


def test_second_copy_of_a_piece_is_no_news() -> None:
    found = schedule(1, A, B)
    (piece,) = asked(found, A)
    assert asked(found, B, 60.0) == [piece]
    assert found.is_wanted(piece)
    assert found.arrived(B, piece, 61.0)
    assert found.is_done
    assert found.is_whole(ONE)
    assert not found.is_wanted(piece)
    assert not found.arrived(A, piece, 62.0)
    found.drop(A)
    assert found.is_done


def test_piece_that_another_still_sends_is_not_fresh_again() -> None:
    found = schedule(1, A, B, C)
    asked(found, A)
    asked(found, B, 60.0)
    found.drop(A)
    assert found.choose(C, 60.0) is None
    found.drop(B)
    assert found.choose(C, 60.0) is not None


class Peer:
    """Sends pieces at its pace; may break off, or lie."""

    def __init__(self, name: str, pace: float, failing: float, lying: bool) -> None:
        self.id = PeerId(name)
        self.pace, self.failing, self.lying = pace, failing, lying


PEERS = st.lists(
    st.tuples(st.floats(0.01, 100), st.floats(0, 0.3), st.booleans()), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(PEERS, st.integers(1, 30), st.randoms(use_true_random=False))
def test_everything_arrives_while_one_honest_peer_is_left(
    made: list[tuple[float, float, bool]], count: int, random: Random
) -> None:
    peers = [Peer(str(place), *one) for place, one in enumerate(made)]
    peers.append(Peer("honest", 1.0, 0.0, lying=False))
    found = schedule(count, *(one.id for one in peers))
    queues: dict[PeerId, list[tuple[float, Piece]]] = {one.id: [] for one in peers}
    got: list[int] = []
    now = 0.0
    while not found.is_done:
        for one in peers:
            queue = queues[one.id]
            for piece in asked(found, one.id, now):
                last = queue[-1][0] if queue else now
                queue.append((last + one.pace, piece))
            assert len(queue) <= WINDOW
        now += 0.5
        for one in peers:
            queue = queues[one.id]
            if random.random() < one.failing:
                queue.clear()
                found.failed(one.id, now)
            while queue and queue[0][0] <= now:
                _, piece = queue.pop(0)
                if one.lying:
                    queue.clear()
                    found.drop(one.id)
                elif found.arrived(one.id, piece, now):
                    got.append(piece.number)
        assert now < 500
    assert sorted(got) == list(range(count))


def test_data_is_as_long_as_a_frame_of_the_muxer() -> None:
    message = Data(chunk=memoryview(bytes(CHUNK)))
    assert len(frame(message)) == (64 << 10) - 12
    found: Data = decode(encode(message), Data)
    assert bytes(found.chunk) == bytes(CHUNK)


@given(st.integers(0, 3 * CHUNK))
def test_frames_of_data_are_those_of_its_messages(size: int) -> None:
    data = memoryview((b"0123456789" * (size // 10 + 1))[:size])
    chunks = [data[start : start + CHUNK] for start in range(0, size, CHUNK)]
    assert data_frames(data) == b"".join(frame(Data(chunk=chunk)) for chunk in chunks)


@pytest.mark.parametrize(
    "wrong",
    [{"sha256": "x"}, {"length": 0}, {"length": artifacts.MAX_RANGE + 1}, {"offset": -1}],
)
def test_absurd_ask_is_refused(wrong: dict[str, object]) -> None:
    right = {"type": "get", "sha256": "a" * 64, "offset": 0, "length": 1}
    assert decode(encode(right), Get) == Get(sha256=Digest("a" * 64), length=1)
    with pytest.raises(RemoteError):
        decode(encode({**right, **wrong}), Get)
