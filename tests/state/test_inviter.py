"""Who is let in, and who is put out."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh import state
from p2p_mesh.core.invite import Member, check, invite_id, join, make_invite, read_token
from p2p_mesh.core.names import peer_id
from p2p_mesh.core.revocation import Revoked, read_revocation
from p2p_mesh.core.signature import Signed, public_bytes
from p2p_mesh.errors import LocalError, Refused, SettingsError, Unavailable
from p2p_mesh.state import inviter as module

NODE = public_bytes(Ed25519PrivateKey.from_private_bytes(b"n" * 32))
GUEST, OTHER, THIRD = (
    public_bytes(Ed25519PrivateKey.from_private_bytes(seed * 32)) for seed in (b"g", b"o", b"t")
)
NOW = 1_000_000.0


def holder(path: Path, now: float = NOW) -> state.Inviter:
    return state.Inviter(path, state.belong(path, (), NODE, "home", now=NOW), lambda: now)


def member(token: str, peer: bytes) -> Member:
    ticket = read_token(token)
    return check(join(ticket, peer), ticket.invite.mesh, NOW)


def says(path: Path, signed: Signed) -> Revoked:
    return read_revocation(signed, state.belong(path, (), NODE, "home", now=NOW).mesh)


def test_standing_invite_is_the_same_each_time(tmp_path: Path) -> None:
    state.belong(tmp_path, (), NODE, "home", now=NOW)
    tokens = {
        state.Inviter(
            tmp_path, state.belong(tmp_path, (), NODE, "home", now=NOW), lambda: NOW
        ).standing(())
        for _ in range(2)
    }
    assert len(tokens) == 1


def test_new_invite_is_a_new_one(tmp_path: Path) -> None:
    inviter = state.Inviter(
        tmp_path, state.belong(tmp_path, (), NODE, "home", now=NOW), lambda: NOW
    )
    first, second = (inviter.make((), "client", 2_000_000_000) for _ in range(2))
    assert first != second
    assert read_token(first).invite.until == 2_000_000_000


def test_without_the_mesh_key_there_is_no_invite(tmp_path: Path) -> None:
    mine = state.belong(tmp_path, (), NODE, "home", now=NOW)
    (tmp_path / "mesh.key").unlink()
    inviter = state.Inviter(tmp_path, mine, lambda: NOW)
    assert inviter.standing(()) is None
    with pytest.raises(LocalError, match="does not hold the mesh key"):
        inviter.make((), "member", None)


def test_redeemed_membership_is_the_same_each_time(tmp_path: Path) -> None:
    inviter = holder(tmp_path)
    invite = read_token(inviter.make((), "client", 2_000_000, uses=1)).invite
    credential = inviter.redeem(invite, GUEST)
    found = check(credential, invite.mesh, NOW)
    assert (found.peer, found.role, found.until) == (peer_id(GUEST), "client", 2_000_000)
    assert inviter.redeem(invite, GUEST) == credential
    assert holder(tmp_path, now=NOW + 1).redeem(invite, GUEST) == credential


def test_spent_invite_is_refused_also_after_a_restart(tmp_path: Path) -> None:
    invite = read_token(holder(tmp_path).make((), "member", None, uses=2)).invite
    for peer in (GUEST, OTHER):
        holder(tmp_path).redeem(invite, peer)
    with pytest.raises(Refused, match="used 2 times") as caught:
        holder(tmp_path).redeem(invite, THIRD)
    assert caught.value.reason == "spent"


def test_use_is_on_disk_before_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inviter = holder(tmp_path)
    invite = read_token(inviter.make((), "member", None, uses=1)).invite

    def full(path: Path, data: bytes) -> None:
        raise SettingsError("no space")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write", full)
        with pytest.raises(SettingsError, match="no space"):
            inviter.redeem(invite, GUEST)
    inviter.redeem(invite, OTHER)  # the first never got it


@pytest.mark.parametrize("limits", [{"join_by": int(NOW)}, {"until": int(NOW), "uses": 1}])
def test_invite_is_redeemed_until_its_end(tmp_path: Path, limits: dict[str, int]) -> None:
    token = holder(tmp_path).make((), "member", **{"until": None, **limits})
    invite = read_token(token).invite
    with pytest.raises(Refused) as caught:
        holder(tmp_path).redeem(invite, GUEST)
    assert caught.value.reason == "expired"
    assert holder(tmp_path, now=NOW - 1).redeem(invite, GUEST)


def test_invite_is_redeemed_where_it_was_made(tmp_path: Path) -> None:
    inviter = holder(tmp_path)
    elsewhere = make_invite(inviter._need(), b"i" * 32, name="home", uses=1)
    with pytest.raises(Unavailable, match="not made at this node"):
        inviter.redeem(read_token(elsewhere).invite, GUEST)
    (tmp_path / "mesh.key").unlink()
    with pytest.raises(Unavailable, match="does not hold the mesh key"):
        holder_without(tmp_path).redeem(read_token(elsewhere).invite, GUEST)


def holder_without(path: Path) -> state.Inviter:
    return state.Inviter(path, state.belong(path, (), NODE, "home", now=NOW), lambda: NOW)


def test_invites_are_listed_with_who_came(tmp_path: Path) -> None:
    inviter = holder(tmp_path)
    plain = inviter.make((), "member", None)
    counted = read_token(inviter.make((), "client", None, uses=3, join_by=2_000_000)).invite
    inviter.redeem(counted, GUEST)
    first, second = sorted(
        inviter.invites([member(plain, OTHER)]), key=lambda one: one.uses is None
    )
    assert (first.id, first.used, first.peers) == (invite_id(counted.key), 1, (peer_id(GUEST),))
    assert (first.uses, first.join_by, first.role) == (3, 2_000_000, "client")
    assert (second.used, second.peers) == (1, (peer_id(OTHER),))
    assert not first.revoked
    assert not first.closed


def test_number_of_uses_is_bounded(tmp_path: Path) -> None:
    for uses in (0, 1025):
        with pytest.raises(LocalError, match="1 to 1024 uses"):
            holder(tmp_path).make((), "member", None, uses=uses)


def test_number_of_invites_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_INVITES", 2)
    inviter = holder(tmp_path)
    inviter.make((), "member", int(NOW) - 1)
    for _ in range(2):
        inviter.make((), "member", None)  # the one that has ended goes
    with pytest.raises(LocalError, match="--until"):
        inviter.make((), "member", None)


def test_revoked_invite_takes_all_that_came_by_it(tmp_path: Path) -> None:
    inviter = holder(tmp_path)
    token = inviter.make((), "member", None)
    key = read_token(token).invite.key
    for text in (token, invite_id(key)):
        revoked = says(tmp_path, inviter.revoke(text, ()))
        assert (revoked.version, revoked.invites) == (1, (key,))
    assert revoked.is_revoked(member(token, GUEST))
    assert [one.revoked for one in inviter.invites()] == [True]


def test_revoked_invite_is_redeemed_no_more(tmp_path: Path) -> None:
    inviter = holder(tmp_path)
    invite = read_token(inviter.make((), "member", None, uses=3)).invite
    inviter.redeem(invite, GUEST)
    inviter.revoke(invite_id(invite.key), ())
    with pytest.raises(Refused, match="revoked"):
        inviter.redeem(invite, GUEST)


def test_revoked_peer_closes_its_invite_and_the_others_stay(tmp_path: Path) -> None:
    inviter = holder(tmp_path)
    token = inviter.standing(())
    assert token is not None
    seen = [member(token, peer) for peer in (GUEST, OTHER)]
    revoked = says(tmp_path, inviter.revoke(peer_id(GUEST), seen))
    assert [revoked.is_revoked(one) for one in seen] == [True, False]
    assert revoked.is_revoked(member(token, THIRD))
    assert [one.closed for one in inviter.invites()] == [True]
    after = inviter.standing(())
    assert after is not None
    assert read_token(after).invite.key != read_token(token).invite.key
    assert not revoked.is_revoked(member(after, THIRD))


def test_peer_that_redeemed_is_revoked_with_nobody_online(tmp_path: Path) -> None:
    inviter = holder(tmp_path)
    invite = read_token(inviter.make((), "member", None, uses=3)).invite
    stays = check(inviter.redeem(invite, OTHER), invite.mesh, NOW)
    out = check(inviter.redeem(invite, GUEST), invite.mesh, NOW)
    revoked = says(tmp_path, inviter.revoke(peer_id(GUEST), ()))
    assert revoked.is_revoked(out)
    assert not revoked.is_revoked(stays)
    with pytest.raises(Refused, match="revoked"):
        inviter.redeem(invite, THIRD)


def test_revocations_stay_after_a_restart(tmp_path: Path) -> None:
    holder(tmp_path).revoke(peer_id(GUEST), ())
    revoked = says(tmp_path, holder(tmp_path).revoke(peer_id(OTHER), ()))
    assert (revoked.version, set(revoked.peers)) == (2, {GUEST, OTHER})


def test_what_is_neither_peer_nor_invite_is_refused(tmp_path: Path) -> None:
    inviter = holder(tmp_path)
    with pytest.raises(LocalError, match="no invite"):
        inviter.revoke("nonsense", ())
    elsewhere = make_invite(Ed25519PrivateKey.generate(), b"i" * 32, name="x")
    with pytest.raises(LocalError, match="another mesh"):
        inviter.revoke(elsewhere, ())
    with pytest.raises(LocalError, match="cannot put itself out"):
        inviter.revoke(peer_id(NODE), ())


def test_invite_of_another_holder_is_known_by_its_members(tmp_path: Path) -> None:
    inviter = holder(tmp_path)
    token = make_invite(inviter._need(), b"i" * 32, name="home")
    key = read_token(token).invite.key
    signed = inviter.revoke(invite_id(key), [member(token, GUEST)])
    assert says(tmp_path, signed).invites == (key,)


def two_holders(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    state.belong(first, (), NODE, "home", now=NOW)
    state.import_mesh(second, state.export_mesh(first))
    return first, second


def second_holder(path: Path) -> state.Inviter:
    (belonging,) = state.meshes(path)
    return state.Inviter(path, belonging, lambda: NOW)


def test_two_holders_that_revoke_at_once_lose_nothing(tmp_path: Path) -> None:
    first, second = two_holders(tmp_path)
    one, other = holder(first), second_holder(second)
    mine, theirs = one.revoke(peer_id(GUEST), ()), other.revoke(peer_id(OTHER), ())
    both, again = one.heard(theirs), other.heard(mine)
    assert both is not None
    assert both == again
    assert set(says(first, both).peers) == {GUEST, OTHER}
    assert one.heard(both) is None
    assert other.heard(theirs) is None


def test_holder_that_was_away_takes_what_is_newer(tmp_path: Path) -> None:
    first, second = two_holders(tmp_path)
    signed = holder(first).revoke(peer_id(GUEST), ())
    assert second_holder(second).heard(signed) is None
    assert set(says(first, second_holder(second).revoke(peer_id(OTHER), ())).peers) == {
        GUEST, OTHER,
    }  # fmt: skip


def test_member_keeps_the_newest_revocation(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    inviter = holder(tmp_path / "a")
    ticket = read_token(inviter.make((), "member", None))
    joined = state.belong(tmp_path / "b", (ticket,), GUEST, "x", now=NOW)
    older, newer = (inviter.revoke(peer_id(peer), ()) for peer in (OTHER, THIRD))
    for signed in (newer, older):
        assert state.Inviter(tmp_path / "b", joined, lambda: NOW).heard(signed) is None
        assert state.revocation(tmp_path / "b", joined.id) == newer
    with pytest.raises(LocalError, match="does not hold the mesh key"):
        state.Inviter(tmp_path / "b", joined, lambda: NOW).revoke(peer_id(OTHER), ())
    assert not state.Inviter(tmp_path / "b", joined, lambda: NOW).is_holder


def test_damaged_list_of_invites_is_named(tmp_path: Path) -> None:
    holder(tmp_path).make((), "member", None)
    (path,) = tmp_path.glob("meshes/*/invites")
    path.write_bytes(b"\xc1")
    with pytest.raises(SettingsError, match="invites is damaged"):
        holder(tmp_path)


def test_member_that_is_away_stays_when_its_invite_is_closed(tmp_path: Path) -> None:
    inviter = holder(tmp_path)
    token = inviter.make((), "member", None)
    inviter.saw([member(token, OTHER), member(token, THIRD)])
    inviter.saw([member(token, OTHER)])
    revoked = says(tmp_path, holder(tmp_path).revoke(peer_id(GUEST), [member(token, GUEST)]))
    assert not revoked.is_revoked(member(token, OTHER))
    assert revoked.is_revoked(member(token, GUEST))
    again = says(tmp_path, holder(tmp_path).revoke(peer_id(THIRD), ()))
    assert again.is_revoked(member(token, THIRD))
    assert not again.is_revoked(member(token, OTHER))


def test_seen_members_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_USES", 1)
    inviter = holder(tmp_path)
    token = inviter.make((), "member", None)
    inviter.saw([member(token, OTHER), member(token, THIRD)])
    assert [one.used for one in inviter.invites()] == [1]


def test_seen_members_cost_no_uses(tmp_path: Path) -> None:
    inviter = holder(tmp_path)
    invite = read_token(inviter.make((), "member", None, uses=1)).invite
    inviter.saw([Member(peer_id(OTHER), "member", None, invite=invite.key, redeemed=True)])
    assert inviter.redeem(invite, GUEST)


@pytest.mark.parametrize("how", ["spent", "late", "revoked"])
def test_invites_that_let_nobody_in_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(module, "MAX_INVITES", 2)
    inviter = holder(tmp_path)
    join_by = int(NOW) - 1 if how == "late" else None
    done = read_token(inviter.make((), "member", None, uses=1, join_by=join_by)).invite
    if how == "spent":
        inviter.redeem(done, GUEST)
    if how == "revoked":
        inviter.revoke(invite_id(done.key), ())
    stays = [read_token(inviter.make((), "member", None)).invite.key for _ in range(2)]
    assert {one.id for one in inviter.invites()} == {invite_id(key) for key in stays}
    with pytest.raises(LocalError, match="2 invites are open"):
        inviter.make((), "member", None)


def test_only_as_many_invites_go_as_room_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_INVITES", 3)
    inviter = holder(tmp_path)
    for made in (3, 1, 2):
        inviter._clock = lambda made=made: made  # type: ignore[misc]
        inviter.make((), "member", until=1)
    inviter._clock = lambda: NOW
    inviter.make((), "member", None)
    assert [one.made for one in inviter.invites()] == [NOW, 3, 2]


def test_standing_invite_is_good_also_where_no_more_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_INVITES", 1)
    inviter = holder(tmp_path)
    inviter.make((), "member", None)
    assert inviter.standing(()) is not None
    assert len(inviter.invites()) == 1


def test_invite_of_another_holder_is_closed_with_its_peer_away(tmp_path: Path) -> None:
    inviter = holder(tmp_path)
    token = make_invite(inviter._need(), b"i" * 32, name="home")
    key = read_token(token).invite.key
    inviter.saw([member(token, peer) for peer in (GUEST, OTHER)])
    again = holder(tmp_path)
    assert again.invite_of(peer_id(GUEST), ()) == invite_id(key)
    revoked = says(tmp_path, again.revoke(peer_id(GUEST), ()))
    assert revoked.is_shut(key)
    assert not revoked.is_revoked(member(token, OTHER))
    assert revoked.is_revoked(member(token, THIRD))


def test_redeemed_invite_of_another_holder_is_closed_and_keeps_nobody_by_name(
    tmp_path: Path,
) -> None:
    inviter = holder(tmp_path)
    seen = [
        Member(peer_id(one), "member", None, b"i" * 32, redeemed=True) for one in (GUEST, OTHER)
    ]
    inviter.saw(seen)
    revoked = says(tmp_path, inviter.revoke(peer_id(GUEST), seen))
    assert [(one.invite, one.kept) for one in revoked.closed] == [(b"i" * 32, ())]
    assert [revoked.is_revoked(one) for one in seen] == [True, False]


def test_peer_whose_invite_is_not_known_says_so(tmp_path: Path) -> None:
    inviter = holder(tmp_path)
    assert inviter.invite_of(peer_id(GUEST), ()) is None
    token = inviter.make((), "member", None)
    assert inviter.invite_of(token, ()) == invite_id(read_token(token).invite.key)
    with pytest.raises(LocalError, match="no invite"):
        inviter.invite_of("nonsense", ())


def test_revoking_again_changes_nothing(tmp_path: Path) -> None:
    inviter = holder(tmp_path)
    first = inviter.revoke(peer_id(GUEST), ())
    assert inviter.revoke(peer_id(GUEST), ()) == first
    assert holder(tmp_path).revoke(peer_id(GUEST), ()) == first
