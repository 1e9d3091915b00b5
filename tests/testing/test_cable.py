"""The long cable: whoever dials whom, what passes takes its time."""

from __future__ import annotations

import subprocess
import sys

import pytest
import trio

from p2p_mesh.testing.cable import open_cable
from p2p_mesh.testing.machines import is_possible

DELAY = 0.02
ANSWER = b"whoever comes is answered"
SERVER = (
    "import socket; listener = socket.create_server(('', 0)); print(listener.getsockname()[1],"
    f" flush=True); listener.accept()[0].sendall({ANSWER!r})"
)

pytestmark = pytest.mark.skipif(not is_possible(), reason="takes root, and iproute2")


async def test_all_that_passes_takes_its_time() -> None:
    async with open_cable(delay=DELAY) as cable, trio.open_nursery() as nursery:
        assert 2 * DELAY < await cable.round_trip() < 1
        command = [*cable.prefix, sys.executable, "-c", SERVER]
        server = await nursery.start(_started, command)
        port = int(await server.stdout.receive_some(16))
        begun = trio.current_time()
        with trio.fail_after(10):
            async with await trio.open_tcp_stream(cable.far, port) as stream:
                assert await stream.receive_some(100) == ANSWER
        assert trio.current_time() - begun > 3 * DELAY  # a handshake, and the answer's way


async def _started(
    command: list[str], task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED
) -> None:
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    task_status.started(process)
    await process.wait()


async def test_nothing_is_left_of_it() -> None:
    async with open_cable(delay=0.0) as cable:
        pass
    listed = await trio.run_process(["ip", "netns", "list"], capture_stdout=True)
    assert cable.namespace.encode() not in listed.stdout
