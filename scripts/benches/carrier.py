"""A process of `scripts/bench artifacts`: `serve FOLDER MODEL`, or `take FOLDER ABOUT`."""

from __future__ import annotations

import json
import mmap
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh.core.inventory import Inventory
from p2p_mesh.core.package import PackageRef
from p2p_mesh.journal import Journal
from p2p_mesh.net.protocols import Protocol, Stream
from p2p_mesh.node.artifacts import Artifacts
from p2p_mesh.serve.hub import Hub
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.serve.store import Digests
from p2p_mesh.settings import Settings
from p2p_mesh.testing.members import Mesh, Node, opened, until

RAW = Protocol("plugin/raw")
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
SPARE = 256 << 20
GULP = 1 << 20
"""Bytes of one write of the raw stream."""


class _Enough(Exception):
    """All bytes came."""


def say(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


def artifacts_of(node: Node, folder: Path, share: Sequence[str] = ()) -> Artifacts:
    digests = Digests(folder / "digests.json")
    found = Artifacts(
        Settings(share=tuple(share)),
        Packages(folder / "packages", digests),
        Hub(),
        inventory=Inventory(),
        files=lambda: (),
        loaded=lambda: (),
        rng=Random(1),
        journal=Journal(),
        changed=lambda: None,
    )
    found.attach(node.net)
    return found


async def serve(folder: Path, model: str) -> None:
    node = Mesh(KEY).node()
    data = Random(1).randbytes(GULP)

    async def pour(stream: Stream, _: Any) -> None:
        for _ in range(int(await stream.receive()) // GULP):
            await stream._channel.write(data)
        await stream.receive()

    async with opened(node), trio.open_nursery() as nursery:
        found = artifacts_of(node, folder, [model])
        nursery.start_soon(found.library.run)
        node.net._protocols.serve(RAW, pour)
        await until(found.library.announced, 120)
        (package,) = found._packages.held()
        size = sum(one.artifact_bytes for one in package.manifest.artifacts)
        say({"seeds": node.seeds(), "peer": node.peer_id, "manifest": package.ref.manifest,
             "pieces": package.ref.pieces, "size": size // GULP * GULP})  # fmt: skip
        await trio.sleep_forever()


async def take(folder: Path, about: Any) -> None:
    node = Mesh(KEY).node()
    async with opened(node, seeds=about["seeds"]):
        await until(lambda: node.came, 30)
        found = artifacts_of(node, folder)
        ref = PackageRef(manifest=about["manifest"], pieces=about["pieces"])
        used = await found.package(ref)
        ways: dict[str, Callable[[], Awaitable[int]]] = {
            "raw": lambda: raw(node, about["peer"], about["size"]),
            "fetch": lambda: fetch(found, used.package),
        }
        say("ready")
        stdin = trio.lowlevel.FdStream(0)
        async for line in stdin:
            if (way := line.decode().strip()) == "fetch":
                shutil.rmtree(used.package.folder / "layers", ignore_errors=True)
                warm(about["size"] + SPARE)
            before = trio.current_time()
            size = await ways[way]()
            say(size / 1e6 / (trio.current_time() - before))


def warm(size: int) -> None:
    """Has that much memory in hand, and lets go of it. Where the machine is a virtual one, its host
    takes free memory away, and a page that it must give again costs more than to carry what is put
    there: that is no matter of the network.
    """
    with mmap.mmap(-1, size) as memory:
        for start in range(0, size, mmap.PAGESIZE):
            memory[start] = 1


async def raw(node: Node, peer: Any, size: int) -> int:
    got = 0

    def count(data: bytes) -> None:
        nonlocal got
        got += len(data)
        if got >= size:
            raise _Enough

    async with node.net._protocols.open(peer, RAW) as stream:
        await stream.send(str(size).encode())
        try:
            await stream._channel.pour(count)
        except _Enough:
            return got
    raise AssertionError("the stream ended")


async def fetch(found: Artifacts, package: Any) -> int:
    paths = [one.path for one in package.manifest.layers]
    await found.fetch(package, paths)
    return sum(one.artifact_bytes for one in package.manifest.layers)


if __name__ == "__main__":
    role, place, *more = sys.argv[1:]
    if role == "serve":
        trio.run(serve, Path(place), more[0])
    else:
        trio.run(take, Path(place), json.loads(more[0]))
