"""Announcements: what is taken, and what they fold into."""

from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core import inventory as module
from p2p_mesh.core.inventory import MAX_ENVELOPE, Inventory, Offer, announce, read
from p2p_mesh.core.invite import Envelope, found, join, make_invite, read_token
from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.records import Announcement, Resources, ServedModel
from p2p_mesh.core.signature import public_bytes, sign
from p2p_mesh.core.wire import decode, encode
from p2p_mesh.errors import Refused, RemoteError

MESH_KEY = Ed25519PrivateKey.from_private_bytes(b"m" * 32)
MESH = public_bytes(MESH_KEY)
KEY = Ed25519PrivateKey.from_private_bytes(b"n" * 32)
CREDENTIAL = found(MESH_KEY, public_bytes(KEY))
NOW = 1_000_000.0


def announcement(
    count: int = 1, issued_at: float = NOW, boot: int = 1_000_000_000, lifetime: float = 60.0
) -> Announcement:
    return Announcement(
        sequence=(boot, count),
        issued_at=issued_at,
        lifetime=lifetime,
        name="alice",
        version="0.1.0",
        resources=Resources(memory_total=8, memory_free=4, threads=2),
        models=(ServedModel(id=ModelId("m"), context=2048, slots=4),),
        addresses=("/ip4/10.0.0.1/tcp/4001",),
    )


def sealed(**given: float) -> bytes:
    return announce(announcement(**given), KEY, CREDENTIAL)  # type: ignore[arg-type]


def test_announcement_survives_its_envelope() -> None:
    offer = read(sealed(), MESH, NOW)
    assert offer.announcement == announcement()
    assert offer.expires == NOW + 60.0


def test_relaying_does_not_revive_the_dead() -> None:
    # Issued 90 s ago for 60 s: min(receipt, issued + 60) + 60 leaves 30.
    assert read(sealed(issued_at=NOW - 90), MESH, NOW).expires == NOW + 30.0
    with pytest.raises(Refused, match="lapsed"):
        read(sealed(issued_at=NOW - 121), MESH, NOW)


@pytest.mark.parametrize("given", [{"issued_at": NOW + 61}, {"boot": int((NOW + 61) * 1000)}])
def test_announcement_from_the_future_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(Refused, match="future"):
        read(sealed(**given), MESH, NOW)


def test_client_announces_nothing() -> None:
    ticket = read_token(make_invite(MESH_KEY, b"i" * 32, name="x", role="client"))
    credential = join(ticket, public_bytes(KEY))
    with pytest.raises(Refused, match="client announces nothing"):
        read(announce(announcement(), KEY, credential), MESH, NOW)


def test_credential_of_another_is_refused() -> None:
    other = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
    with pytest.raises(Refused, match="credential of another"):
        read(announce(announcement(), other, CREDENTIAL), MESH, NOW)


def test_announcement_signed_by_another_is_refused() -> None:
    envelope: Envelope = decode(sealed(), Envelope)
    other = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
    forged = Envelope(
        author=envelope.author,
        body=sign("announcement", envelope.body.payload, other),
        credential=envelope.credential,
    )
    with pytest.raises(Refused, match="signature of the announcement"):
        read(encode(forged), MESH, NOW)


def test_huge_envelope_is_refused_before_it_is_read() -> None:
    with pytest.raises(RemoteError, match="limit"):
        read(bytes(MAX_ENVELOPE + 1), MESH, NOW)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_remote_error(data: bytes) -> None:
    with pytest.raises(RemoteError):
        read(data, MESH, NOW)


def offer(peer: str, count: int, body: bytes = b"", expires: float = NOW + 60) -> Offer:
    return Offer(PeerId(peer), announcement(count), body, expires)


offers = st.builds(offer, st.sampled_from("abc"), st.integers(1, 4), st.sampled_from([b"x", b"y"]))


@given(st.lists(offers, max_size=12), st.randoms())
def test_order_and_repetition_change_nothing(heard: list[Offer], rng: object) -> None:
    first, second = Inventory(), Inventory()
    shuffled = heard + heard
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    for one in heard:
        first.apply(one)
    for one in shuffled:
        second.apply(one)
    assert first.offers() == second.offers()


def test_only_news_is_news() -> None:
    inventory = Inventory()
    assert inventory.apply(offer("a", 1))
    assert not inventory.apply(offer("a", 1))
    assert inventory.apply(offer("a", 2))
    assert not inventory.apply(offer("a", 1))


def test_offers_lapse() -> None:
    inventory = Inventory()
    inventory.apply(offer("a", 1, expires=10.0))
    inventory.apply(offer("b", 1, expires=20.0))
    assert inventory.expire(10.0) == ("a",)
    assert [one.peer for one in inventory.offers()] == ["b"]
    assert inventory.get(PeerId("a")) is None


def test_suspect_is_trusted_again() -> None:
    inventory = Inventory()
    inventory.suspect(PeerId("a"))
    assert not inventory.is_suspect(PeerId("a"))  # nobody knows it
    inventory.apply(offer("a", 1))
    inventory.suspect(PeerId("a"))
    assert inventory.is_suspect(PeerId("a"))
    inventory.trust(PeerId("a"))
    assert not inventory.is_suspect(PeerId("a"))


def test_newcomer_takes_the_place_of_who_lapses_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MEMBERS", 2)
    inventory = Inventory()
    for peer, expires in (("a", NOW + 60), ("b", NOW + 50), ("c", NOW + 70)):
        assert inventory.apply(offer(peer, 1, expires=expires))
    assert [one.peer for one in inventory.offers()] == ["a", "c"]
    assert inventory.apply(offer("a", 2))
    assert inventory.expire(NOW) == ("b",)  # whoever keeps more of it is told
    assert inventory.expire(NOW) == ()


def test_envelopes_take_so_many_bytes_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    monkeypatch.setattr(module, "MAX_BULK", 400)
    monkeypatch.setattr(module, "BULKY", 100)
    inventory = Inventory()
    sizes = [80, 150, 90, 200, 100, 180, 300] * 9
    for place, size in enumerate(sizes):
        body = bytes([place]) * size
        assert inventory.apply(offer(f"{place % 40}", 1 + place, body, NOW + place))
        kept = [len(one.envelope) for one in inventory.offers()]
        assert sum(kept) == inventory._bytes <= 1000
        assert sum(one for one in kept if one > 100) == inventory._bulk <= 400
        assert inventory.holds(body)
    assert sum(one <= 100 for one in kept) >= 6  # those that say much have taken no room of theirs


def test_what_was_said_before_brings_nobody_back() -> None:
    inventory = Inventory()
    inventory.apply(offer("a", 1, b"long", NOW + 3600))
    inventory.apply(offer("a", 2, b"short", NOW + 60))
    assert inventory.expire(NOW + 60) == ("a",)
    assert not inventory.apply(offer("a", 1, b"long", NOW + 3600))
    assert not inventory.apply(offer("a", 2, b"short", NOW + 120))
    inventory.expire(NOW + 3599)
    assert not inventory.apply(offer("a", 1, b"long", NOW + 3600))
    assert inventory.apply(offer("a", 3, b"new", NOW + 3660))
    inventory.forget(PeerId("a"))
    assert not inventory.apply(offer("a", 3, b"new", NOW + 7200))
    assert inventory.expire(NOW + 7200) == ()
    assert not inventory._past
    assert not inventory._lasts


def test_few_sequences_of_the_forgotten_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MEMBERS", 3)
    inventory = Inventory()
    for number in range(20):
        inventory.apply(offer(str(number), 1))
    assert len(inventory._past) == len(inventory._lasts) == 3


def test_small_mesh_announces_often_and_a_large_one_seldom() -> None:
    assert [module.heartbeat(size) for size in (1, 10, 20, 600, 2400)] == [20, 20, 40, 1200, 2400]


def test_a_mesh_grows_faster_than_what_it_says() -> None:
    said = [size / module.heartbeat(size) for size in (1000, 10_000)]
    assert said[1] < 4 * said[0]
    assert module.lifetime(10_000) < 21_600


@given(st.integers(1, 600))
def test_announcements_of_a_mesh_are_bounded(size: int) -> None:
    assert size / module.heartbeat(size) <= 1 / module.EVERY


@given(st.integers(0, 10_000), st.randoms())
def test_two_announcements_may_get_lost(size: int, rng: Random) -> None:
    assert 2 * module.pause(size, rng) < module.lifetime(size)
    assert decode(encode(announcement(lifetime=module.lifetime(size))), Announcement)


def test_newest_envelope_is_held() -> None:
    inventory = Inventory()
    inventory.apply(offer("a", 1, b"old"))
    assert inventory.holds(b"old")
    inventory.apply(offer("a", 2, b"new"))
    assert (inventory.holds(b"old"), inventory.holds(b"new")) == (False, True)
    inventory.forget(PeerId("a"))
    assert not inventory.holds(b"new")
    assert len(inventory) == 0


def test_newer_announcement_clears_a_failure_but_no_silence() -> None:
    inventory = Inventory()
    inventory.apply(offer("a", 1))
    inventory.suspect(PeerId("a"))
    inventory.apply(offer("a", 2))
    assert not inventory.is_suspect(PeerId("a"))
    inventory.suspect(PeerId("a"), silent=True)
    inventory.suspect(PeerId("a"))
    inventory.apply(offer("a", 3))
    assert inventory.is_suspect(PeerId("a"))
    inventory.trust(PeerId("a"))
    assert not inventory.is_suspect(PeerId("a"))


def test_offers_are_sorted_once() -> None:
    inventory = Inventory()
    inventory.apply(offer("b", 1))
    inventory.apply(offer("a", 1))
    assert [one.peer for one in inventory.offers()] == ["a", "b"]
    assert inventory.offers() is inventory.offers()
    inventory.apply(offer("a", 2))
    assert [one.announcement.sequence[1] for one in inventory.offers()] == [2, 1]
