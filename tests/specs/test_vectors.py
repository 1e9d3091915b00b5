"""The bytes in specs/vectors, read and made by this code: a protocol does not change unseen."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh.core.admission import Hello, Proof, Transcript, check_proof, prove
from p2p_mesh.core.inventory import Announced, AskSnapshot, read
from p2p_mesh.core.invite import Credential, check, join, public_bytes, read_token
from p2p_mesh.core.names import mesh_id, peer_id
from p2p_mesh.core.records import Announcement
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
    ("inventory", "ask_frame", AskSnapshot),
    ("inventory", "announced_frame", Announced),
    ("inference", "ask_frame", Ask),
    ("inference", "delta_frame", Grew),
    ("inference", "cancel_frame", Cancel),
    ("inference", "error_frame", ErrorMessage),
    ("inference", "end_frame", End),
    ("inference", "ask_choices_frame", Ask),
    ("inference", "delta_choices_frame", Grew),
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
    pages = ("admission", "inventory", "inference")
    found = {(page, name) for page in pages for name in vectors(page) if name.endswith("_frame")}
    assert found == {(page, name) for page, name, _ in FRAMES}


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


def test_envelope_holds_the_announcement() -> None:
    found = vectors("inventory")
    offer = read(bytes.fromhex(found["envelope"]), bytes.fromhex(found["mesh_key"]), found["now"])
    assert offer.announcement == decode(bytes.fromhex(found["announcement"]), Announcement)
    assert offer.expires == found["now"] + 60.0
