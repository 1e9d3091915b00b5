"""A worker that speaks as the one of a stage does, and has no model: `python -m
tests.plugins.skippy.stand_in CONTROL LINK`. A token goes around the ring, and each stage adds its
layers to it; so an answer shows that all stages were there, each once. It writes its records as
plain maps: what has them as types takes half a second to import.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
from typing import Any

import msgspec

ROW = struct.Struct("<III")  # epoch, answer, token
TOKENS = 200


class StandIn:
    def __init__(self, control: socket.socket, link: socket.socket) -> None:
        self.control, self.link = control, link
        self.epoch = 0
        self.live: dict[int, tuple[int, int]] = {}
        self.stage: dict[str, Any] = {}

    def run(self) -> None:
        while True:
            for ready in select.select([self.control, self.link], [], [])[0]:
                frame = read(ready)
                if ready is self.link:
                    self.pass_on(frame)
                else:
                    self.obey(msgspec.msgpack.decode(frame))

    def say(self, kind: str, **fields: Any) -> None:
        write(self.control, msgspec.msgpack.encode({"type": kind, **fields}))

    def obey(self, command: dict[str, Any]) -> None:
        match command["type"]:
            case "open_stage":
                self.open(command)
            case "restart":
                self.epoch = command["epoch"]
                for number in self.live:
                    self.send(number)
            case "ask":
                number = command["number"]
                self.live[number] = command["request"]["prompt"]["tokens"][0], 0
                if self.epoch:
                    self.send(number)
            case "ping":
                self.say("pong")
            case "listen":
                self.say("listening", port=0)
            case "dial":
                self.say("dialled", reached=False)
            case "cancel":
                self.live.pop(command["number"], None)

    def open(self, command: dict[str, Any]) -> None:
        if "bad" in command["name"]:
            self.say("failed", reason="it is a bad model")
            sys.exit()
        self.say("progress", share=0.5)
        self.stage = command
        notes = [f"threads {command['threads']}, GPU layers {command['gpu_layers']}"]
        self.say("ready", numerics="stand-in", device="cpu", notes=notes)

    def send(self, number: int) -> None:
        token, _ = self.live[number]
        write(self.link, ROW.pack(self.epoch, number, self.added(token)))

    def added(self, token: int) -> int:
        for _ in range(self.stage["wiring"]["blocks"]):
            token = (token * 31 + 7) % 1009
        return token

    def pass_on(self, frame: bytes) -> None:
        epoch, number, token = ROW.unpack(frame)
        if self.stage["stage"]:
            write(self.link, ROW.pack(epoch, number, self.added(token)))
        elif epoch == self.epoch and number in self.live:
            self.answer(number, token)

    def answer(self, number: int, token: int) -> None:
        count = self.live[number][1] + 1
        self.live[number] = token, count
        delta: dict[str, Any] = {"tokens": [token], "text": f"{token} "}
        if count == TOKENS:
            usage = {"prompt_tokens": 1, "completion_tokens": count}
            delta |= {"finish": "stop", "usage": usage}
            del self.live[number]
        self.say("answer", number=number, delta=delta)
        if count < TOKENS:
            self.send(number)


def read(connection: socket.socket) -> bytes:
    """A frame; the end of the connection is the end of the process."""
    head = connection.recv(4, socket.MSG_WAITALL)
    if not head:
        os._exit(0)
    length = int.from_bytes(head, "little")
    return connection.recv(length, socket.MSG_WAITALL) if length else b""


def write(connection: socket.socket, body: bytes) -> None:
    connection.sendall(len(body).to_bytes(4, "little") + body)


if __name__ == "__main__":
    ours, ring = (socket.socket(fileno=int(one)) for one in sys.argv[1:])
    StandIn(ours, ring).run()
