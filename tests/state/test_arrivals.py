"""By which invite each member came."""

from pathlib import Path

import pytest

from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import peer_id
from p2p_mesh.state import arrivals as module
from p2p_mesh.state.arrivals import Arrivals

FIRST, SECOND, INVITE = b"1" * 32, b"2" * 32, b"i" * 32


def member(peer: bytes, *, invite: bytes | None = INVITE, redeemed: bool = False) -> Member:
    return Member(peer_id(peer), "member", None, invite=invite, redeemed=redeemed)


def test_invite_is_known_after_a_restart(tmp_path: Path) -> None:
    Arrivals(tmp_path / "arrivals").note([member(FIRST), member(SECOND, invite=None)])
    again = Arrivals(tmp_path / "arrivals")
    assert again.invite_of(FIRST) == INVITE
    assert again.invite_of(SECOND) is None
    assert again.invites() == {INVITE}


def test_who_redeemed_is_told_from_who_has_the_token(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path / "arrivals")
    arrivals.note([member(FIRST), member(SECOND, redeemed=True)])
    assert arrivals.by_token(INVITE) == {FIRST}


def test_newest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ARRIVALS", 1)
    arrivals = Arrivals(tmp_path / "arrivals")
    for peer in (FIRST, SECOND):
        arrivals.note([member(peer)])
    assert arrivals.by_token(INVITE) == {SECOND}
    assert Arrivals(tmp_path / "arrivals").invite_of(FIRST) is None


def test_nothing_is_written_where_nothing_is_new(tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path / "arrivals")
    arrivals.note([member(FIRST)])
    (tmp_path / "arrivals").unlink()
    arrivals.note([member(FIRST)])
    assert not (tmp_path / "arrivals").exists()


def test_damaged_file_is_learned_again(tmp_path: Path) -> None:
    (tmp_path / "arrivals").write_bytes(b"\xc1")
    assert Arrivals(tmp_path / "arrivals").invites() == set()
