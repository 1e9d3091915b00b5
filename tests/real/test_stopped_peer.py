"""A peer that is stopped or killed, over real sockets: what waits for it, and what does not."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives import serialization as form

from p2p_mesh.errors import Unavailable
from p2p_mesh.net import muxer
from p2p_mesh.testing.members import Mesh, Node, opened, request, text_of, until

SERVER = """
import sys, trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from p2p_mesh.core.records import Delta
from p2p_mesh.testing.members import Mesh, echo, opened

async def answer(asked):
    while asked.prompt.text == "for ever":
        yield Delta(text="x", tokens=(1,))
        await trio.sleep(0.02)
    async for delta in echo(asked):
        yield delta

async def main():
    mesh = Mesh(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(sys.argv[1])))
    node = mesh.node(generate=answer)
    async with opened(node):
        print(node.peer_id, node.seeds()[0], flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@asynccontextmanager
async def process(mesh: Mesh) -> AsyncIterator[tuple[trio.Process, Any, str]]:
    """A member in a process of its own: the process, its peer id and its address."""
    key = mesh.key.private_bytes(form.Encoding.Raw, form.PrivateFormat.Raw, form.NoEncryption())
    command = [sys.executable, "-c", SERVER, key.hex()]
    child = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        said = b""
        with trio.fail_after(30):
            while not said.endswith(b"\n"):
                said += await child.stdout.receive_some()
        peer, seed = said.decode().split()
        yield child, peer, seed
    finally:
        child.kill()
        with trio.CancelScope(shield=True):
            await child.wait()


@asynccontextmanager
async def three() -> AsyncIterator[tuple[Node, Node, trio.Process, Any]]:
    """A node that asks, one that answers in this process, and one in a process of its own."""
    mesh = Mesh()
    asker, other = mesh.node(), mesh.node()
    async with process(mesh) as (child, peer, seed), opened(other), opened(asker, seeds=[seed]):
        await asker.net.connect(other.peer_id, other.net.addresses())
        await until(lambda: {peer, other.peer_id} <= {*asker.came}, seconds=20)
        yield asker, other, child, peer


async def test_killed_peer_is_noticed_within_a_second() -> None:
    async with (
        three() as (asker, _, child, peer),
        asker.net.ask(peer, request("for ever")) as deltas,
    ):
        await anext(deltas)
        child.kill()
        with trio.fail_after(1), pytest.raises(Unavailable):
            async for _delta in deltas:
                pass


async def test_stopped_peer_holds_up_nobody_else() -> None:
    async with three() as (asker, other, child, peer):
        assert await text_of(asker, peer) == "hello"
        child.send_signal(signal.SIGSTOP)
        start = trio.current_time()
        with trio.move_on_after(1):
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(text_of, asker, peer, "x" * (8 << 20))
                await trio.sleep(0.5)
                with trio.fail_after(0.4):
                    for _ in range(5):
                        assert await text_of(asker, other.peer_id) == "hello"
        assert trio.current_time() - start < 1.2
        (conn,) = [
            conn.muxed_conn
            for conn in asker.net._host.libp2p.get_network().get_connections()
            if str(conn.muxed_conn.peer_id) == peer
        ]
        assert len(conn._queue) + len(conn._rest) < muxer.OVERFULL
        await until(lambda: not asker.net._questions._open[peer], seconds=2)
        child.send_signal(signal.SIGCONT)
        with trio.fail_after(5):
            assert await text_of(asker, peer) == "hello"
