"""First light: how soon a client is up, how soon an answer begins, what a node weighs.

Two real nodes on loopback, one with the bundled model, one client that joined it.
"""

from __future__ import annotations

import socket
import statistics
import tempfile
from pathlib import Path

import psutil
import trio
from figures import Figure, undisturbed

from p2p_mesh.serve.store import DEFAULT_MODEL
from p2p_mesh.testing.cluster import NodeProcess, start_node
from p2p_mesh.testing.events import post_stream

STARTS = 5
PAIRS = 20
SETTLE = 3.0


async def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        async with start_node(Path(folder) / "server") as server:
            invite = (await server.wait("ready", 60))["invite"]
            api = await undisturbed(lambda: _client_api(Path(folder), invite))
            async with start_node(Path(folder) / "c", "--client", "--join", invite) as client:
                await client.wait("ready", 60)
                for node in (server, client):
                    await _first_delta(node)  # streams are opened, pages are touched
                local, extra = await undisturbed(lambda: _pairs(server, client))
                await trio.sleep(SETTLE)
                weight = max(_megabytes(node.pid) for node in (server, client))
    return [
        Figure("client_api_s", api, "s", "<=", 2.0),
        Figure("first_delta_ms", local * 1e3, "ms", "<=", 100.0),
        Figure("peer_extra_ms", extra * 1e3, "ms", "<=", 20.0),
        Figure("idle_rss_mb", weight, "MB", "<", 150.0),
    ]


async def _client_api(folder: Path, invite: str) -> float:
    """Median seconds from the command to the first answer of a client's API."""
    return statistics.median(
        [await _one_start(folder / f"start{n}", invite) for n in range(STARTS)]
    )


async def _one_start(data_dir: Path, invite: str) -> float:
    port = _free_port()
    start = trio.current_time()
    async with start_node(data_dir, "--client", "--join", invite, "--port", str(port)):
        await _wait_answer(port)
        return trio.current_time() - start


async def _wait_answer(port: int) -> None:
    request = f"GET /v1/models HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n"
    with trio.fail_after(30):
        while True:
            try:
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(request.encode())
                    assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
                    return
            except OSError:
                await trio.sleep(0.005)


async def _pairs(server: NodeProcess, client: NodeProcess) -> tuple[float, float]:
    """Median seconds to the first delta asked directly, and what asking through a peer adds."""
    direct, added = [], []
    for _ in range(PAIRS):
        here, there = await _first_delta(server), await _first_delta(client)
        direct.append(here)
        added.append(there - here)
    return statistics.median(direct), statistics.median(added)


async def _first_delta(node: NodeProcess) -> float:
    question = {
        "model": DEFAULT_MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 8,
    }
    start = trio.current_time()
    async with post_stream(f"{node.url()}/v1/chat/completions", question) as events:
        while event := await events.next():
            if event["choices"] and event["choices"][0]["delta"].get("content"):
                found = trio.current_time() - start
                await events.all()
                return found
    raise AssertionError("an answer without text")


def _megabytes(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 1e6


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
