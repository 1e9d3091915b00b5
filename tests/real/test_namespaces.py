"""Two machines: nodes in network namespaces of their own, with a cable each."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from p2p_mesh.testing.cluster import start_node
from p2p_mesh.testing.machines import Machine, is_possible, open_machines

ASK = """
import json, sys, urllib.request
url, body = sys.argv[1:]
request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=20).read().decode())
"""
ECHO = """
import socket, sys
connection, _ = socket.create_server((sys.argv[1], 8000)).accept()
while data := connection.recv(100):
    connection.sendall(data)
"""


@pytest.fixture
async def machines() -> AsyncIterator[dict[str, Machine]]:
    if not is_possible():
        pytest.skip("network namespaces need root and iproute2")
    async with open_machines("ab") as machines:
        yield machines


def ask(prefix: tuple[str, ...], url: str, model: str) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "seed": 1,
            "max_tokens": 24}  # fmt: skip
    command = [*prefix, sys.executable, "-c", ASK, f"{url}/v1/chat/completions", json.dumps(body)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return json.loads(done.stdout)["choices"][0]["message"]["content"]


async def test_model_of_another_machine_answers_here(
    tmp_path: Path, tiny: Path, machines: dict[str, Machine]
) -> None:
    async with start_node(
        tmp_path / "a", "--model", str(tiny), prefix=machines["a"].prefix
    ) as alice:
        ready = await alice.wait("ready", 60)
        assert any(f"/ip4/{machines['a'].address}/" in address for address in ready["p2p_addrs"])
        async with start_node(
            tmp_path / "b", "--client", "--join", ready["invite"], prefix=machines["b"].prefix
        ) as bob:
            await bob.wait("ready", 60)
            texts = [
                await trio.to_thread.run_sync(ask, machines[key].prefix, node.url(), "tiny")
                for key, node in (("a", alice), ("b", bob))
            ]
            assert texts[0] == texts[1] != ""


async def test_pulled_cable_is_silent_and_closes_nothing(machines: dict[str, Machine]) -> None:
    machine = machines["b"]
    command = [*machine.prefix, sys.executable, "-c", ECHO, machine.address]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.run_process, command)
        async with await _connect(machine) as stream:
            assert await echoed(stream, b"one") == b"one"
            await machine.unplug()
            with trio.move_on_after(1) as silence:
                await echoed(stream, b"two")
            assert silence.cancelled_caught
            await machine.plug()
            with trio.fail_after(30):
                assert await stream.receive_some() == b"two"
        nursery.cancel_scope.cancel()


async def echoed(stream: trio.SocketStream, data: bytes) -> bytes:
    await stream.send_all(data)
    return bytes(await stream.receive_some())


async def _connect(machine: Machine) -> trio.SocketStream:
    with trio.fail_after(30):
        while True:
            try:
                return await trio.open_tcp_stream(machine.address, 8000)
            except OSError:
                await trio.sleep(0.05)
