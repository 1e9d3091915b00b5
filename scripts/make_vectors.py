"""Writes specs/vectors/*.json: what the formats of specs/ give for fixed keys.

A change here is a change of a protocol: it needs a new version of it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh.core import artifacts as parts
from p2p_mesh.core.admission import Hello, Redeemed, Revocation, Transcript, ask_redeem, prove
from p2p_mesh.core.control import (
    Challenge,
    LoadModel,
    ModelState,
    Report,
    give_order,
    owner_text,
)
from p2p_mesh.core.demand import TOPIC, DemandReport, Rate
from p2p_mesh.core.health import Down, Ping, Pong
from p2p_mesh.core.inventory import Announced, AskSnapshot, announce
from p2p_mesh.core.invite import Credential, join, make_invite, read_token, redeemed, seal
from p2p_mesh.core.names import Digest, ModelId, RequestId, mesh_id, peer_id
from p2p_mesh.core.records import (
    Announcement,
    CallDelta,
    ChatPrompt,
    Delta,
    DetokenizeQuery,
    EmbedQuery,
    InferenceRequest,
    ModelLoad,
    RerankQuery,
    Resources,
    Resume,
    Sampling,
    Scores,
    ServedModel,
    Shard,
    Text,
    TextPrompt,
    TokenizeQuery,
    TokenLogprob,
    Tokens,
    Tool,
    Usage,
    Vectors,
)
from p2p_mesh.core.revocation import NOTHING, revoke_invite, revoke_peer, seal_revocation
from p2p_mesh.core.sessions import score, session
from p2p_mesh.core.signature import public_bytes
from p2p_mesh.core.wire import Ask, Cancel, End, ErrorMessage, Found, Grew, Look, encode, frame
from p2p_mesh.errors import Overloaded

FOLDER = Path(__file__).parents[1] / "specs" / "vectors"
SEEDS = {"mesh": b"m" * 32, "node": b"n" * 32, "other": b"o" * 32, "invite": b"i" * 32}
KEYS = {name: Ed25519PrivateKey.from_private_bytes(seed) for name, seed in SEEDS.items()}
MESH = public_bytes(KEYS["mesh"])


def admission() -> dict[str, Any]:
    address = f"/ip4/192.0.2.1/tcp/4001/p2p/{peer_id(public_bytes(KEYS['other']))}"
    token = make_invite(
        KEYS["mesh"], SEEDS["invite"], name="home", role="member", until=2_000_000_000,
        seeds=(address,),
    )  # fmt: skip
    credential = join(read_token(token), public_bytes(KEYS["node"]))
    transcript = Transcript(
        mesh=mesh_id(MESH),
        prover=peer_id(public_bytes(KEYS["node"])),
        verifier=peer_id(public_bytes(KEYS["other"])),
        prover_nonce=b"p" * 32,
        verifier_nonce=b"v" * 32,
    )
    hello = Hello(version=1, mesh=mesh_id(MESH), nonce=b"p" * 32)
    return {
        "seeds": {name: seed.hex() for name, seed in SEEDS.items()},
        "mesh_id": mesh_id(MESH),
        "peer_id": peer_id(public_bytes(KEYS["node"])),
        "token": token,
        "credential": encode(credential).hex(),
        "transcript": encode(transcript).hex(),
        "hello_frame": frame(hello).hex(),
        "proof_frame": frame(prove(transcript, credential, KEYS["node"])).hex(),
        "end_frame": frame(End()).hex(),
        **_redeemed_and_revoked(transcript, credential),
    }


def _redeemed_and_revoked(transcript: Transcript, credential: Credential) -> dict[str, str]:
    token = make_invite(KEYS["mesh"], SEEDS["invite"], name="home", uses=3, join_by=1_950_000_000)
    ticket = read_token(token)
    node = public_bytes(KEYS["node"])
    revoked = revoke_peer(NOTHING, public_bytes(KEYS["other"]), ticket.invite.key, [node])
    signed = seal_revocation(revoke_invite(revoked, b"j" * 32), KEYS["mesh"])
    mark = hashlib.sha256(signed.payload).digest()[:16]
    hello = Hello(version=1, mesh=mesh_id(MESH), nonce=b"p" * 32, revocation=mark)
    given = redeemed(KEYS["mesh"], ticket.invite, node)
    return {
        "redeem_token": token,
        "redeem_frame": frame(ask_redeem(transcript, ticket.signed, ticket.seed)).hex(),
        "redeemed_frame": frame(Redeemed(credential=given)).hex(),
        "revocation": encode(signed).hex(),
        "revoked_frame": frame(Revocation(revocation=signed)).hex(),
        "proof_revocation_frame": frame(prove(transcript, credential, KEYS["node"], signed)).hex(),
        "hello_revocation_frame": frame(hello).hex(),
    }


def inventory() -> dict[str, Any]:
    token = make_invite(KEYS["mesh"], SEEDS["invite"], name="home")
    announcement = Announcement(
        sequence=(1_900_000_000_000, 1),
        issued_at=1_900_000_000.0,
        lifetime=60.0,
        name="alice",
        version="0.1.0",
        resources=Resources(memory_total=8_000_000_000, memory_free=4_000_000_000, threads=2),
        models=(
            ServedModel(
                id=ModelId("tiny"), digest=Digest("0" * 64), context=2048, slots=4, numerics="x"
            ),
        ),
        addresses=("/ip4/192.0.2.1/tcp/4001",),
    )
    credential = join(read_token(token), public_bytes(KEYS["node"]))
    envelope = announce(announcement, KEYS["node"], credential)
    return {
        "mesh_key": MESH.hex(),
        "now": 1_900_000_001.0,
        "announcement": encode(announcement).hex(),
        "envelope": envelope.hex(),
        "shard_model": encode(_shard()).hex(),
        "ask_frame": frame(AskSnapshot()).hex(),
        "ask_updates_frame": frame(AskSnapshot(updates=True)).hex(),
        "announced_frame": frame(Announced(envelope=envelope)).hex(),
    }


def _shard() -> ServedModel:
    shard = Shard(model=Digest("0" * 64), mass=0.875)
    return ServedModel(
        id=ModelId("tiny"), digest=Digest("1" * 64), context=2048, slots=4, shard=shard
    )


def demand() -> dict[str, Any]:
    token = make_invite(KEYS["mesh"], SEEDS["invite"], name="home", role="client")
    report = DemandReport(
        sequence=(1_900_000_000_000, 1),
        issued_at=1_900_000_000.0,
        lifetime=90.0,
        rates=(Rate(model=ModelId("tiny"), rate=4.0),),
        wishes=(ModelId("large"),),
    )
    credential = join(read_token(token), public_bytes(KEYS["node"]))
    return {
        "mesh_key": MESH.hex(),
        "now": 1_900_000_000.0,
        "report": encode(report).hex(),
        "envelope": seal(TOPIC, encode(report), KEYS["node"], credential).hex(),
        "totals_after_60_s": {"large": 1.0, "tiny": 2.0},
    }


def inference() -> dict[str, Any]:
    request = InferenceRequest(
        id=RequestId("chatcmpl-1"),
        model=ModelId("tiny"),
        prompt=ChatPrompt(messages=({"role": "user", "content": "hello"},)),
        sampling=Sampling(seed=7, temperature=0.5),
        max_tokens=16,
        stop=("\n",),
        asked_at=1_900_000_000,
    )
    deltas = (
        Delta(tokens=(15043,), text="Hi"),
        Delta(finish="stop", usage=Usage(prompt_tokens=9, completion_tokens=1)),
    )
    return {
        "ask_frame": frame(Ask(request=request)).hex(),
        "delta_frame": frame(Grew(deltas=deltas)).hex(),
        "cancel_frame": frame(Cancel()).hex(),
        "error_frame": frame(ErrorMessage.of(Overloaded("full", retry_after=2.0))).hex(),
        "end_frame": frame(End()).hex(),
        "session": session(request).hex(),
        "session_given": session(request, "mine").hex(),
        "score": score(session(request), peer_id(public_bytes(KEYS["node"]))).hex(),
        **_asked_for_more(),
        **_queries(),
    }


def _asked_for_more() -> dict[str, str]:
    """An answer of two choices, with tools and log-probabilities, that broke off and goes on."""
    request = InferenceRequest(
        id=RequestId("chatcmpl-2"),
        model=ModelId("tiny"),
        prompt=ChatPrompt(
            messages=({"role": "user", "content": [{"type": "text", "text": "hello"}]},),
            tools=(Tool(name="now", parameters={"type": "object"}, strict=True),),
            tool_choice="required",
            parallel_tool_calls=False,
            variables={"enable_thinking": True},
        ),
        sampling=Sampling(logit_bias=((15043, -100.0),)),
        choices=2,
        logprobs=1,
        resume=(
            Resume(tokens=(1, 2), text=3, reasoning=4, calls=(5,)),
            Resume(choice=1, finished=True),
        ),
    )
    spelled = TokenLogprob(token=9, piece=b"\xc3", logprob=-0.5, top=((9, b"\xc3", -0.5),))
    deltas = (
        Delta(tokens=(9,), reasoning="so", logprobs=(spelled,)),
        Delta(choice=1, calls=(CallDelta(name="now", arguments="{"),)),
        Delta(choice=1, finish="tool_calls"),
        Delta(finish="stop", usage=Usage(prompt_tokens=9, completion_tokens=3, reasoning_tokens=1)),
    )
    filled = InferenceRequest(
        id=RequestId("cmpl-3"),
        model=ModelId("tiny"),
        prompt=TextPrompt(text="def f(", suffix="return x"),
        max_tokens=0,
        echo=True,
        schema={"type": "object"},
    )
    return {
        "ask_choices_frame": frame(Ask(request=request)).hex(),
        "delta_choices_frame": frame(Grew(deltas=deltas)).hex(),
        "ask_text_frame": frame(Ask(request=filled)).hex(),
    }


def _queries() -> dict[str, str]:
    model = ModelId("tiny")
    messages = {
        "look_embed": Look(query=EmbedQuery(model=model, inputs=("hello", (15043,)))),
        "found_vectors": Found(
            reply=Vectors(vectors=(struct.pack("<2f", 0.6, 0.8),) * 2, prompt_tokens=3)
        ),
        "look_rerank": Look(query=RerankQuery(model=model, query="who?", documents=("I", "you"))),
        "found_scores": Found(reply=Scores(scores=(0.5, -1.5), prompt_tokens=6)),
        "look_tokenize": Look(
            query=TokenizeQuery(model=model, prompt=TextPrompt(text="hé"), with_pieces=True)
        ),
        "found_tokens": Found(reply=Tokens(tokens=(7, 8), pieces=(b"h\xc3", b"\xa9"))),
        "look_detokenize": Look(query=DetokenizeQuery(model=model, tokens=(7, 8))),
        "found_text": Found(reply=Text(text="hé")),
    }
    return {f"{name}_frame": frame(message).hex() for name, message in messages.items()}


def control() -> dict[str, Any]:
    seed, nonce, now = b"w" * 32, b"c" * 32, 1_900_000_000
    key = Ed25519PrivateKey.from_private_bytes(seed)
    target = peer_id(public_bytes(KEYS["node"]))
    command = LoadModel(digest=Digest("0" * 64))
    ordered = give_order(command, target=target, nonce=nonce, key=key, now=now)
    models = (
        ModelState(id=ModelId("tiny"), digest=Digest("0" * 64), state="loading", progress=0.5),
        ModelState(id=ModelId("big"), state="failed", error="it does not fit"),
    )
    return {
        "seed": seed.hex(),
        "owner": owner_text(public_bytes(key)),
        "target": target,
        "nonce": nonce.hex(),
        "now": now,
        "order": ordered.order.payload.hex(),
        "challenge_frame": frame(Challenge(nonce=nonce)).hex(),
        "order_frame": frame(ordered).hex(),
        "report_frame": frame(Report(models=models)).hex(),
    }


def health() -> dict[str, Any]:
    load = ModelLoad(
        model=ModelId("tiny"), slots=4, active=4, queued=1, prefill=900.0, first=0.25, whole=3.5
    )
    peer = peer_id(public_bytes(KEYS["other"]))
    return {
        "ping_frame": frame(Ping(number=1)).hex(),
        "pong_frame": frame(Pong(number=1)).hex(),
        "pong_load_frame": frame(Pong(number=2, load=(load,))).hex(),
        "down_frame": frame(Down(peer=peer)).hex(),
    }


def artifacts() -> dict[str, Any]:
    digest = Digest("ab" * 32)
    messages = {
        "get": parts.Get(sha256=digest, offset=parts.MAX_RANGE, length=1000),
        "found": parts.Found(size=5_000_000),
        "data": parts.Data(chunk=memoryview(b"0123456789")),
        "lacking": parts.Lacking(),
        "ask_held": parts.AskHeld(manifest=digest),
        "held": parts.HeldFiles(files=(digest,)),
    }
    return {f"{name}_frame": frame(message).hex() for name, message in messages.items()}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for make in (admission, inventory, health, demand, inference, control, artifacts):
        path = FOLDER / f"{make.__name__}.json"
        path.write_text(json.dumps(make(), indent=2) + "\n")


if __name__ == "__main__":
    main()
