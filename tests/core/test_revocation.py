"""Lists of revocations: who is out by them, and how two become one."""

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import peer_id
from p2p_mesh.core.revocation import (
    KIND,
    MAX_CLOSED,
    MAX_KEPT,
    MAX_REVOKED,
    NOTHING,
    Closed,
    Revoked,
    is_newer,
    merge,
    read_revocation,
    revoke_invite,
    revoke_peer,
    seal_revocation,
)
from p2p_mesh.core.signature import public_bytes, sign
from p2p_mesh.core.wire import ADMISSION_LIMIT, encode
from p2p_mesh.errors import LocalError, Refused, RemoteError

MESH_KEY = Ed25519PrivateKey.from_private_bytes(b"m" * 32)
MESH = public_bytes(MESH_KEY)


def key(number: int) -> bytes:
    return bytes([number >> 8, number & 255]) * 16


def member(number: int, invite: int | None = None, *, redeemed: bool = False) -> Member:
    by = None if invite is None else key(invite)
    return Member(peer_id(key(number)), "member", None, invite=by, redeemed=redeemed)


KEYS = st.integers(0, 5).map(key)
MEMBERS = st.builds(
    member, st.integers(0, 5), st.none() | st.integers(0, 5), redeemed=st.booleans()
)
Steps = list[tuple[bool, bytes, bytes | None, frozenset[bytes]]]
STEPS = st.lists(
    st.tuples(st.booleans(), KEYS, st.none() | KEYS, st.frozensets(KEYS, max_size=3)), max_size=6
)


def after(steps: Steps) -> Revoked:
    """What a holder's list says after it revoked some invites and peers."""
    revoked = NOTHING
    for is_invite, one, invite, kept in steps:
        revoked = (
            revoke_invite(revoked, one) if is_invite else revoke_peer(revoked, one, invite, kept)
        )
    return revoked


def content(revoked: Revoked) -> Revoked:
    return msgspec.structs.replace(revoked, version=0)


def test_nobody_is_revoked_at_first() -> None:
    assert not NOTHING.is_revoked(member(1, 2))


def test_revoked_peer_is_out_and_its_invite_shut() -> None:
    revoked = revoke_peer(NOTHING, key(1), key(9), [key(2)])
    assert revoked.is_revoked(member(1, 9))
    assert revoked.is_revoked(member(1))
    assert not revoked.is_revoked(member(2, 9))
    assert revoked.is_revoked(member(3, 9))
    assert revoked.is_shut(key(9))
    assert not revoked.is_revoked(member(3, 8))


def test_redeemed_member_stays_when_its_invite_is_closed() -> None:
    revoked = revoke_peer(NOTHING, key(1), key(9), [])
    assert not revoked.is_revoked(member(3, 9, redeemed=True))
    assert revoke_invite(revoked, key(9)).is_revoked(member(3, 9, redeemed=True))


def test_revoked_peer_of_no_invite_closes_none() -> None:
    assert revoke_peer(NOTHING, key(1), None, []).closed == ()


def test_second_peer_of_a_closed_invite_is_out_too() -> None:
    revoked = revoke_peer(NOTHING, key(1), key(9), [key(2), key(3)])
    revoked = revoke_peer(revoked, key(2), key(9), [])
    assert revoked.is_revoked(member(2, 9))
    assert not revoked.is_revoked(member(3, 9))


def test_forged_revocation_is_refused() -> None:
    signed = seal_revocation(revoke_invite(NOTHING, key(1)), MESH_KEY)
    with pytest.raises(Refused, match="signature of the revocation"):
        read_revocation(signed, key(3))


def test_list_of_too_many_kept_peers_is_refused() -> None:
    half = tuple(key(number) for number in range(MAX_KEPT // 2 + 1))
    closed = tuple(Closed(invite=key(number), kept=half) for number in (1, 2))
    signed = sign(KIND, encode(Revoked(version=1, closed=closed)), MESH_KEY)
    with pytest.raises(RemoteError, match="keeps more than"):
        read_revocation(signed, MESH)
    with pytest.raises(LocalError, match="revoke a whole invite"):
        seal_revocation(Revoked(version=1, closed=closed), MESH_KEY)


def test_full_list_fits_into_a_frame_beside_a_credential() -> None:
    many = tuple(key(number) for number in range(MAX_REVOKED))
    kept = tuple(key(number) for number in range(MAX_KEPT))
    closed = tuple(
        Closed(invite=key(number), kept=kept[number * 4 : number * 4 + 4])
        for number in range(MAX_CLOSED)
    )
    signed = seal_revocation(
        Revoked(version=2**53, peers=many, invites=many, closed=closed), MESH_KEY
    )
    assert len(encode(signed)) < ADMISSION_LIMIT - (12 << 10)


@given(STEPS, STEPS)
def test_merge_ignores_order(first: Steps, second: Steps) -> None:
    assert merge(after(first), after(second)) == merge(after(second), after(first))


@given(STEPS, STEPS, STEPS)
def test_merge_ignores_grouping(first: Steps, second: Steps, third: Steps) -> None:
    a, b, c = after(first), after(second), after(third)
    assert content(merge(merge(a, b), c)) == content(merge(a, merge(b, c)))


@given(STEPS)
def test_merge_with_itself_is_itself(steps: Steps) -> None:
    assert merge(after(steps), after(steps)) == after(steps)


@given(STEPS, STEPS)
def test_merge_is_no_older_than_either(first: Steps, second: Steps) -> None:
    merged = merge(after(first), after(second))
    assert not is_newer(after(first), merged)
    assert not is_newer(after(second), merged)


@given(STEPS, STEPS, MEMBERS)
def test_merge_lets_nobody_back_in(first: Steps, second: Steps, who: Member) -> None:
    """But for those that the other holder knew to be in by a closed invite."""
    one, other = after(first), after(second)
    both = merge(one, other)
    if one.is_revoked(who) and other.is_revoked(who):
        assert both.is_revoked(who)
    if any(peer_id(peer) == who.peer for peer in (*one.peers, *other.peers)):
        assert both.is_revoked(who)
    if who.invite in (*one.invites, *other.invites):
        assert both.is_revoked(who)


@given(st.permutations([(False, 1), (True, 2), (False, 3), (True, 4)]))
def test_order_of_revocations_does_not_matter(order: list[tuple[bool, int]]) -> None:
    steps: Steps = [
        (is_invite, key(number), None, frozenset[bytes]()) for is_invite, number in order
    ]
    assert after(steps) == after(sorted(steps))


@given(st.lists(STEPS, min_size=1, max_size=4), st.randoms())
def test_newest_wins_whatever_came_first(lists: list[Steps], random: object) -> None:
    heard = [after(steps) for steps in lists]
    shuffled = [*heard]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    ends = []
    for way in (heard, shuffled):
        held = NOTHING
        for one in way:
            held = one if is_newer(one, held) else held
        ends.append(held)
    assert ends[0] == ends[1]
