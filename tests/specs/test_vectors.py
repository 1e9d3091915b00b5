"""The bytes in specs/vectors, read and made by this code: a protocol does not change unseen."""

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh.core import artifacts
from p2p_mesh.core.admission import (
    Hello,
    Proof,
    Redeem,
    Redeemed,
    Revocation,
    Transcript,
    ask_redeem,
    check_proof,
    check_redeem,
    prove,
)
from p2p_mesh.core.artifacts import AskHeld, Data, Get, HeldFiles, Lacking
from p2p_mesh.core.control import (
    Challenge,
    LoadModel,
    Ordered,
    Report,
    check_order,
    give_order,
    read_owner,
)
from p2p_mesh.core.demand import TOPIC, Demand, DemandReport
from p2p_mesh.core.demand import read as read_report
from p2p_mesh.core.health import Down, Ping, Pong
from p2p_mesh.core.inventory import Announced, AskSnapshot, read
from p2p_mesh.core.invite import Credential, check, join, read_token, redeemed, unseal
from p2p_mesh.core.names import Digest, PeerId, mesh_id, peer_id
from p2p_mesh.core.records import Announcement, InferenceRequest, ServedModel, Shard
from p2p_mesh.core.revocation import read_revocation
from p2p_mesh.core.signature import Signed, public_bytes
from p2p_mesh.core.wire import (
    Ask,
    Cancel,
    End,
    ErrorMessage,
    Found,
    Frames,
    Grew,
    Look,
    decode,
    encode,
    frame,
)
from p2p_mesh.errors import HandedOver, MeshError

FOLDER = Path(__file__).parents[2] / "specs" / "vectors"


def vectors(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vectors("admission")["seeds"][name]))


FRAMES = [
    ("admission", "hello_frame", Hello),
    ("admission", "proof_frame", Proof),
    ("admission", "end_frame", End),
    ("admission", "redeem_frame", Redeem),
    ("admission", "redeemed_frame", Redeemed),
    ("admission", "revoked_frame", Revocation),
    ("admission", "proof_revocation_frame", Proof),
    ("admission", "hello_revocation_frame", Hello),
    ("control", "challenge_frame", Challenge),
    ("control", "order_frame", Ordered),
    ("control", "report_frame", Report),
    ("artifacts", "get_frame", Get),
    ("artifacts", "found_frame", artifacts.Found),
    ("artifacts", "data_frame", Data),
    ("artifacts", "lacking_frame", Lacking),
    ("artifacts", "ask_held_frame", AskHeld),
    ("artifacts", "held_frame", HeldFiles),
    ("health", "ping_frame", Ping),
    ("health", "pong_frame", Pong),
    ("health", "pong_load_frame", Pong),
    ("health", "down_frame", Down),
    ("inventory", "ask_frame", AskSnapshot),
    ("inventory", "ask_updates_frame", AskSnapshot),
    ("inventory", "announced_frame", Announced),
    ("inference", "ask_frame", Ask),
    ("inference", "delta_frame", Grew),
    ("inference", "cancel_frame", Cancel),
    ("inference", "error_frame", ErrorMessage),
    ("inference", "end_frame", End),
    ("inference", "ask_choices_frame", Ask),
    ("inference", "delta_choices_frame", Grew),
    ("inference", "ask_weigh_frame", Ask),
    ("inference", "error_handed_frame", ErrorMessage),
    ("inference", "ask_text_frame", Ask),
    ("inference", "look_embed_frame", Look),
    ("inference", "look_rerank_frame", Look),
    ("inference", "look_tokenize_frame", Look),
    ("inference", "look_detokenize_frame", Look),
    ("inference", "found_vectors_frame", Found),
    ("inference", "found_scores_frame", Found),
    ("inference", "found_tokens_frame", Found),
    ("inference", "found_text_frame", Found),
]


@pytest.mark.parametrize(("page", "name", "kind"), FRAMES)
def test_frame_is_read_and_made_again(page: str, name: str, kind: type) -> None:
    raw = bytes.fromhex(vectors(page)[name])
    frames = Frames(limit=100_000)
    frames.feed(raw)
    (body,) = frames
    assert frame(decode(body, kind)) == raw


def test_every_frame_has_its_kind() -> None:
    pages = ("admission", "artifacts", "control", "health", "inventory", "inference")
    found = {(page, name) for page in pages for name in vectors(page) if name.endswith("_frame")}
    assert found == {(page, name) for page, name, _ in FRAMES}


def test_order_is_the_owners() -> None:
    found = vectors("control")
    owner = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(found["seed"]))
    nonce, target = bytes.fromhex(found["nonce"]), PeerId(found["target"])
    ordered = give_order(
        LoadModel(digest=Digest("0" * 64)), target=target, nonce=nonce, key=owner, now=found["now"]
    )
    assert frame(ordered).hex() == found["order_frame"]
    assert ordered.order.payload.hex() == found["order"]
    command = check_order(
        ordered, target=target, nonce=nonce, owners=[read_owner(found["owner"])], now=found["now"]
    )
    assert command == LoadModel(digest=Digest("0" * 64))


def test_names() -> None:
    found = vectors("admission")
    assert mesh_id(public_bytes(key("mesh"))) == found["mesh_id"]
    assert peer_id(public_bytes(key("node"))) == found["peer_id"]


def test_token_makes_the_credential() -> None:
    found = vectors("admission")
    credential = join(read_token(found["token"]), public_bytes(key("node")))
    assert encode(credential).hex() == found["credential"]
    member = check(credential, public_bytes(key("mesh")), now=1_900_000_000)
    assert (member.peer, member.role, member.until) == (found["peer_id"], "member", 2_000_000_000)


def test_proof_is_of_the_transcript() -> None:
    found = vectors("admission")
    transcript: Transcript = decode(bytes.fromhex(found["transcript"]), Transcript)
    credential: Credential = decode(bytes.fromhex(found["credential"]), Credential)
    proof = prove(transcript, credential, key("node"))
    assert frame(proof).hex() == found["proof_frame"]
    assert check_proof(proof, transcript, public_bytes(key("mesh")), 0.0).role == "member"


def of_frame(name: str, kind: Any) -> Any:
    frames = Frames(limit=100_000)
    frames.feed(bytes.fromhex(vectors("admission")[name]))
    return decode(next(iter(frames)), kind)


def test_token_is_redeemed() -> None:
    found = vectors("admission")
    ticket, mesh = read_token(found["redeem_token"]), public_bytes(key("mesh"))
    transcript: Transcript = decode(bytes.fromhex(found["transcript"]), Transcript)
    redeem = of_frame("redeem_frame", Redeem)
    assert redeem == ask_redeem(transcript, ticket.signed, ticket.seed)
    invite = check_redeem(redeem, transcript, mesh)
    given = of_frame("redeemed_frame", Redeemed).credential
    assert given == redeemed(key("mesh"), invite, public_bytes(key("node")))
    member = check(given, mesh, now=0.0)
    assert (member.peer, member.invite, member.redeemed) == (found["peer_id"], invite.key, True)


def test_revocation_says_who_is_out() -> None:
    found, mesh = vectors("admission"), public_bytes(key("mesh"))
    signed: Signed = decode(bytes.fromhex(found["revocation"]), Signed)
    revoked = read_revocation(signed, mesh)
    assert (revoked.version, revoked.invites) == (2, (b"j" * 32,))
    assert revoked.peers == (public_bytes(key("other")),)
    token = read_token(found["token"])
    for name, is_out in (("node", False), ("other", True), ("invite", True)):
        member = check(join(token, public_bytes(key(name))), mesh, now=0.0)
        assert revoked.is_revoked(member) is is_out
    assert of_frame("revoked_frame", Revocation).revocation == signed
    assert of_frame("proof_revocation_frame", Proof).revocation == signed
    mark = of_frame("hello_revocation_frame", Hello).revocation
    assert mark == hashlib.sha256(signed.payload).digest()[:16]


def test_envelope_holds_the_announcement() -> None:
    found = vectors("inventory")
    offer = read(bytes.fromhex(found["envelope"]), bytes.fromhex(found["mesh_key"]), found["now"])
    assert offer.announcement == decode(bytes.fromhex(found["announcement"]), Announcement)
    assert offer.expires == found["now"] + 60.0


def test_report_of_demand_is_read_and_adds_up() -> None:
    page = vectors("demand")
    payload = bytes.fromhex(page["report"])
    assert encode(decode(payload, DemandReport)) == payload
    mesh, now = bytes.fromhex(page["mesh_key"]), page["now"]
    member, body = unseal(TOPIC, bytes.fromhex(page["envelope"]), mesh, now)
    assert (member.role, body) == ("client", payload)
    demand = Demand()
    demand.apply(read_report(member.peer, body, now, role=member.role))
    assert demand.totals(now + 60) == page["totals_after_60_s"]


def test_shard_is_read_and_made_again() -> None:
    raw = bytes.fromhex(vectors("inventory")["shard_model"])
    served: ServedModel = decode(raw, ServedModel)
    assert encode(served) == raw
    assert served.shard == Shard(model=Digest("0" * 64), mass=0.875)


def test_session_and_score_are_those_of_the_page() -> None:
    """By the words of specs/inference alone."""
    page = vectors("inference")
    message = msgspec.msgpack.encode({"content": "hello", "role": "user"})
    begun = hashlib.blake2b(message, digest_size=16, person=b"begun").digest()
    named = hashlib.blake2b(b"mine", digest_size=16, person=b"given").digest()
    assert (page["session"], page["session_given"]) == (begun.hex(), named.hex())
    node = peer_id(public_bytes(key("node")))
    score = hashlib.blake2b(node.encode(), digest_size=16, key=begun).digest()
    assert page["score"] == score.hex()


def test_request_may_be_handed_over_to_a_node() -> None:
    found = vectors("inference")
    frames = Frames(limit=100_000)
    for name in ("ask_frame", "ask_weigh_frame", "error_handed_frame"):
        frames.feed(bytes.fromhex(found[name]))
    plain, weighed, handed = frames
    asked: InferenceRequest = decode(weighed, Ask).request
    assert asked.weigh
    assert msgspec.structs.replace(asked, weigh=False) == decode(plain, Ask).request
    error: MeshError = decode(handed, ErrorMessage).error()
    assert type(error) is HandedOver
    assert error.param == vectors("admission")["peer_id"]
