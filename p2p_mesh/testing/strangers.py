"""Peers that keep to no rule of ours: plain libp2p hosts, and what they hear."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p import generate_new_ed25519_identity, new_host
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_key
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from p2p_mesh.core.admission import Hello, Proof, Revocation, Transcript, prove
from p2p_mesh.core.invite import Credential
from p2p_mesh.core.names import MeshId, mesh_id
from p2p_mesh.core.signature import Signed
from p2p_mesh.core.wire import ADMISSION_LIMIT, End, ErrorMessage, Message
from p2p_mesh.net import patches
from p2p_mesh.net.protocols import Stream, protocol_id
from p2p_mesh.testing.members import Node


class Stranger:
    """A libp2p host with a key of its own, or with a member's; `heard` is every byte that it
    received after Noise.
    """

    def __init__(self, host: Any, heard: bytearray) -> None:
        self.host = host
        self.heard = heard

    async def dial(self, node: Node) -> None:
        address = Multiaddr(node.net.addresses()[0])
        swarm = self.host.get_network()
        await swarm._dial_addr_single_attempt(address, ID.from_base58(node.peer_id))

    async def open(self, node: Node, protocol: str) -> Any:
        return await self.host.new_stream(ID.from_base58(node.peer_id), [protocol])

    async def send(self, node: Node, protocol: str, data: bytes) -> bytes:
        """Sends bytes in a protocol; what comes back until the stream ends or two seconds
        have passed.
        """
        came = bytearray()
        with trio.move_on_after(2), suppress(Exception):
            stream = await self.open(node, protocol)
            await stream.write(data)
            while True:
                came += await stream.read(4096)
        return bytes(came)

    async def handshake(
        self,
        node: Node,
        credential: Credential,
        key: Ed25519PrivateKey,
        *,
        mesh: MeshId | None = None,
        hello: Hello | None = None,
        proof: Proof | None = None,
        revocation: Signed | None = None,
        pause: float = 0,
    ) -> tuple[Proof | None, Message]:
        """The dialer's side of admission, with what it is told to say. What it proved, and
        what the node answered to that. `pause` is how long it holds back its `end`.
        """
        raw = await self.open(node, protocol_id("admission"))
        stream = Stream(raw, node.peer_id, ADMISSION_LIMIT)
        mesh = mesh or mesh_id(node.mesh_key)
        ours = hello or Hello(version=1, mesh=mesh, nonce=secrets.token_bytes(32))
        await stream.tell(ours)
        theirs = await stream.hear(Hello | ErrorMessage)
        if isinstance(theirs, ErrorMessage):
            return None, theirs
        transcript = Transcript(
            mesh=mesh,
            prover=str(self.host.get_id()),
            verifier=node.peer_id,
            prover_nonce=ours.nonce,
            verifier_nonce=theirs.nonce,
        )
        proof = proof or prove(transcript, credential, key, revocation)
        await stream.tell(proof)
        answer: Message = await stream.hear(Proof | Revocation | ErrorMessage)
        if isinstance(answer, Proof):
            await trio.sleep(pause)
            await stream.tell(End())
        return proof, answer


@asynccontextmanager
async def stranger(
    transport: Any = None, *, keys: Any = None, heard: bytearray | None = None
) -> AsyncIterator[Stranger]:
    patches.apply()
    heard = bytearray() if heard is None else heard
    keys = keys or generate_new_ed25519_identity()
    noise = _Listening(keys, noise_privkey=new_noise_key().private_key)
    noise.heard = heard
    host = new_host(
        key_pair=keys,
        sec_opt={NOISE: noise},
        muxer_opt={YAMUX: Yamux},
        transports=[transport] if transport else None,
    )
    async with host.run([]):
        try:
            yield Stranger(host, heard)
        finally:
            with trio.move_on_after(1) as scope:
                scope.shield = True
                await host.close()


class _Listening(Noise):  # type: ignore[misc]
    """Noise that keeps what it decrypts."""

    heard: bytearray

    async def secure_outbound(self, conn: Any, peer: Any) -> Any:
        secured = await super().secure_outbound(conn, peer)
        decrypt = secured.conn.decrypt

        def listen(sealed: bytes) -> Any:
            data = decrypt(sealed)
            self.heard += data
            return data

        secured.conn.decrypt = listen
        return secured
