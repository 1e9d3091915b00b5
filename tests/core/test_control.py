"""Who can order a node about: nobody but an owner that it accepted, and no order twice."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.control import (
    LIFETIME,
    MAX_AHEAD,
    Command,
    ListModels,
    LoadModel,
    ModelState,
    Order,
    Ordered,
    Report,
    StopNode,
    UnloadModel,
    check_order,
    give_order,
    owner_text,
    read_owner,
)
from p2p_mesh.core.names import Digest, ModelId, PeerId
from p2p_mesh.core.signature import public_bytes, sign
from p2p_mesh.core.wire import decode, encode
from p2p_mesh.errors import Refused, RemoteError, SettingsError

KEY = Ed25519PrivateKey.from_private_bytes(b"w" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"x" * 32)
OWNER = public_bytes(KEY)
NODE = PeerId("12D3-node")
NONCE = b"n" * 32
DIGEST = Digest("ab" * 32)
NOW = 1_000_000.0


def order(command: Command | None = None, **changed: Any) -> Ordered:
    given: dict[str, Any] = {"target": NODE, "nonce": NONCE, "key": KEY, "now": NOW} | changed
    return give_order(command or StopNode(), **given)


def check(ordered: Ordered, **changed: Any) -> Command:
    known: dict[str, Any] = {"target": NODE, "nonce": NONCE, "owners": {OWNER}, "now": NOW}
    return check_order(ordered, **(known | changed))


@pytest.mark.parametrize(
    "command", [ListModels(), LoadModel(digest=DIGEST), UnloadModel(digest=DIGEST), StopNode()]
)
def test_order_of_the_owner_holds(command: Command) -> None:
    travelled: Ordered = decode(encode(order(command)), Ordered)
    assert check(travelled) == command


@pytest.mark.parametrize(
    ("ordered", "known", "reason", "words"),
    [
        (order(key=OTHER), {}, "refused", "does not accept the owner mo1_"),
        (order(), {"owners": frozenset()}, "refused", "does not accept"),
        (order(target=PeerId("12D3-other")), {}, "borrowed", "another node"),
        (order(nonce=b"m" * 32), {}, "replayed", "another stream"),
        (order(), {"nonce": b"m" * 32}, "replayed", "given before"),
        (order(), {"now": NOW + LIFETIME}, "expired", "clocks"),
        (order(now=NOW + MAX_AHEAD), {}, "expired", "clocks"),
    ],
)
def test_any_other_order_is_refused(
    ordered: Ordered, known: dict[str, Any], reason: str, words: str
) -> None:
    with pytest.raises(Refused, match=words) as error:
        check(ordered, **known)
    assert error.value.reason == reason


def test_another_who_names_the_owner_is_refused() -> None:
    forged = msgspec.structs.replace(order(key=OTHER), owner=OWNER)
    with pytest.raises(Refused, match="signature") as error:
        check(forged)
    assert error.value.reason == "forged"


def test_signature_over_something_else_is_no_order() -> None:
    body = Order(target=NODE, nonce=NONCE, until=int(NOW) + 1, command=StopNode())
    for kind in ("membership", "announcement", "admission"):
        with pytest.raises(Refused, match="signature"):
            check(Ordered(owner=OWNER, order=sign(kind, encode(body), KEY)))


def test_clock_that_is_a_minute_off_is_borne() -> None:
    assert check(order(), now=NOW - 60) == StopNode()
    assert check(order(), now=NOW + LIFETIME - 1) == StopNode()


@given(st.binary(max_size=200))
def test_no_bytes_of_an_owner_raise_anything_else(payload: bytes) -> None:
    with pytest.raises(RemoteError):
        check(Ordered(owner=OWNER, order=sign("control", payload, KEY)))


@pytest.mark.parametrize("digest", ["", "ab", "AB" * 32, "/etc/passwd", "ab" * 32 + "\n"])
def test_model_is_named_by_its_digest_alone(digest: str) -> None:
    body = {"target": NODE, "nonce": NONCE, "until": int(NOW) + 1,
            "command": {"type": "load", "digest": digest}}  # fmt: skip
    with pytest.raises(RemoteError, match="malformed"):
        check(Ordered(owner=OWNER, order=sign("control", encode(body), KEY)))


def test_report_is_bounded() -> None:
    one = ModelState(id=ModelId("m"), state="held")
    assert decode(encode(Report(models=(one,) * 256)), Report).models[0] == one
    with pytest.raises(RemoteError):
        decode(encode(Report(models=(one,) * 257)), Report)


def test_owner_is_read_as_it_was_written() -> None:
    text = owner_text(OWNER)
    assert text.startswith("mo1_")
    assert read_owner(f" {text}\n") == OWNER


@pytest.mark.parametrize(
    "text", ["", "mo1_", owner_text(OWNER)[4:], owner_text(OWNER)[:-1], owner_text(OWNER) + "A",
             "mn1_abc", "mo1_\u00e4" * 9],
)  # fmt: skip
def test_what_is_no_owner_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="meshnode owner key"):
        read_owner(text)
