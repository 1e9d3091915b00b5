"""A worker that speaks as a flash engine does, and has no model: `python -m
tests.plugins.flash_moe.stand_in CONTROL`. It opens any path but `bad`, says in its numerics what it
was told, and answers each question with some reports of its disk. It writes its records as plain
maps: what has them as types takes half a second to import.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import msgspec

WAITS = {"slow": 0.9, "fast": 0.1}
REPORTS = 5


def main(control: socket.socket) -> None:
    while head := control.recv(4, socket.MSG_WAITALL):
        size = int.from_bytes(head, "little")
        obey(control, msgspec.msgpack.decode(control.recv(size, socket.MSG_WAITALL)))


def obey(control: socket.socket, command: dict[str, Any]) -> None:
    if command["type"] == "flash-open":
        opened = command["open"]
        if opened["path"] == "bad":
            say(control, "failed", reason="the file is none")
            return
        told = f"{command['memory']} {command['experts']} {opened.get('speculation', True)}"
        say(control, "ready", numerics=told, device="cpu", capabilities=["generate"], notes=["n"])
    elif command["type"] == "look":
        answer(control, command["number"], WAITS[command["query"]["prompt"]["text"]])


def answer(control: socket.socket, number: int, wait: float) -> None:
    for _ in range(REPORTS):
        say(
            control, "flash-told", hit_rate=0.63, disk_bytes_per_token=41e6, disk_bandwidth=1.2e9,
            disk_wait=wait, expert_bytes_cached=4_200_000_000, expert_bytes=16_300_000_000,
            tokens=9,
        )  # fmt: skip
    say(control, "replied", number=number, reply={"type": "text", "text": ""})


def say(control: socket.socket, kind: str, **fields: Any) -> None:
    body = msgspec.msgpack.encode({"type": kind, **fields})
    control.sendall(len(body).to_bytes(4, "little") + body)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
