"""The flash engine process: `python -P -m meshnode_flash_moe.worker FD`.

It is llama_cpp's worker with another model: see there. What it adds is that it tells now and then
what the disk costs.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from functools import partial
from pathlib import Path

from meshnode_llama_cpp.frames import Failed, Ready, encode
from meshnode_llama_cpp.library import start
from meshnode_llama_cpp.worker import Worker, attend, limit_memory, tell

from meshnode_flash_moe.served import FlashWriter, files
from meshnode_flash_moe.told import Open, commands
from p2p_mesh.errors import MeshError


def main(descriptor: int) -> None:
    connection = socket.socket(fileno=descriptor)
    inbox = attend(connection, commands())
    command = inbox.take()
    assert isinstance(command, Open)
    start()
    try:
        # The place of the whole file is asked for, and hardly any of it taken.
        place = sum(one.stat().st_size for one in files(Path(command.open.path)))
        limit_memory(command.memory + place, command.open.threads, [])
        served = FlashWriter(command, partial(tell, connection))
    except (MeshError, OSError) as error:
        connection.sendall(encode(Failed(str(error))))
        return
    connection.sendall(
        encode(Ready(served.numerics("cpu"), "cpu", served.capabilities, served.notes))
    )
    gc.freeze()  # what was made until now stays: the collector need not look it through again
    serve(served, Worker(served, connection, inbox))


def serve(served: FlashWriter, worker: Worker) -> None:
    """For ever: the process ends with the connection."""
    while True:
        worker.turn()
        if (news := served.tell()) is not None:
            worker.send(news)


if __name__ == "__main__":
    main(int(sys.argv[1]))
    os._exit(0)  # no destructors: llama.cpp's take their time, and the memory goes back anyway
