"""The nodes of a simulated mesh: real keys and credentials, and what they sign, as it travels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh.core import demand
from p2p_mesh.core.demand import DemandReport
from p2p_mesh.core.inventory import announce, lifetime
from p2p_mesh.core.invite import Credential, Ticket, join, make_invite, read_token, seal
from p2p_mesh.core.names import Digest, ModelId, PeerId, peer_id
from p2p_mesh.core.records import Announcement, Resources, ServedModel
from p2p_mesh.core.signature import public_bytes
from p2p_mesh.core.wire import encode

START = 1_800_000_000.0
"""Unix seconds at which a simulation begins."""

GIB = 1 << 30
MODELS = tuple(ModelId(f"some-model-{size}b-instruct-q4_k_m") for size in (1, 3, 8, 14, 32, 70))


class Person:
    """One node: what it says, signed."""

    def __init__(self, key: Ed25519PrivateKey, credential: Credential, number: int) -> None:
        self.peer: PeerId = peer_id(public_bytes(key))
        self._key, self._credential, self._number = key, credential, number
        self._count = 0

    def announce(self, members: int, now: float) -> bytes:
        self._count += 1
        address = f"/ip4/10.{self._number >> 16}.{self._number >> 8 & 255}.{self._number & 255}"
        announcement = Announcement(
            sequence=(int(START * 1000), self._count),
            issued_at=now,
            lifetime=lifetime(members),
            name=f"node-{self._number}",
            version="0.1.0",
            resources=Resources(memory_total=64 * GIB, memory_free=40 * GIB, threads=16),
            models=(_model(self._number + self._count),),
            addresses=(f"{address}/tcp/43117", "/ip4/127.0.0.1/tcp/43117"),
        )
        return announce(announcement, self._key, self._credential)

    def report(self, report: DemandReport) -> bytes:
        return seal(demand.TOPIC, encode(report), self._key, self._credential)


class Mesh:
    """The mesh key, and people with memberships by its standing invite."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._key = _key(random)
        self.public = public_bytes(self._key)
        token = make_invite(self._key, random.randbytes(32), name="simulation", role="member")
        self._ticket: Ticket = read_token(token)

    def people(self, count: int) -> list[Person]:
        keys = [_key(self._random) for _ in range(count)]
        return [
            Person(key, join(self._ticket, public_bytes(key)), number)
            for number, key in enumerate(keys)
        ]


def each(actions: Sequence[Callable[[], object]]) -> float:
    """CPU seconds that each of these takes, on the average."""
    start = time.process_time()
    for action in actions:
        action()
    return (time.process_time() - start) / len(actions)


def _key(random: Random) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(random.randbytes(32))


def _model(number: int) -> ServedModel:
    return ServedModel(
        id=MODELS[number % len(MODELS)],
        digest=Digest(f"{number % 7:064x}"),
        context=32_768,
        slots=8,
        capabilities=("generate", "tools", "vision"),
        numerics="0.3.34 avx512 f16 flash 48",
        speed=57.25,
    )
