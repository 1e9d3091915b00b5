"""Engines without nodes, in one process beside the bench: started, asked, ended."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from peer import Terms

_PROGRAM = Path(__file__).with_name("engines.py")
_LINE = 65_536
PATIENCE = 300.0
"""Seconds that an answer may take; loading is the first."""


class Direct:
    """What engines.py answers. `memory`: bytes of the `whole` model, and of both `stages`."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._held = b""
        self.memory: dict[str, Any] = {}

    async def hear(self) -> Any:
        """Its next line. RuntimeError where it ended instead."""
        assert self._process.stdout is not None
        with trio.fail_after(PATIENCE):
            while b"\n" not in self._held:
                data = await self._process.stdout.receive_some(_LINE)
                if not data:
                    raise RuntimeError("the engines beside the bench ended")
                self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return json.loads(line)

    async def _ask(self, **question: Any) -> Any:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps(question).encode() + b"\n")
        return await self.hear()

    async def decode(self, *, prompt: int, answer: int, rest: float = 0.0) -> float:
        """Seconds for a token of one stream, in halves that rest before they compute."""
        found = await self._ask(what="decode", of="halves", prompt=prompt, answer=answer, rest=rest)
        return float(found)

    async def curve(self, *, most: int, prompt: int, repeats: int) -> dict[int, float]:
        """Seconds of a step of the whole model, by the number of its rows."""
        found = await self._ask(what="curve", of="whole", most=most, prompt=prompt, repeats=repeats)
        return dict(enumerate(found, 1))

    async def window(self, *, rows: int, prompt: int, repeats: int, rest: float = 0.0) -> float:
        """Seconds of a step with so many rows of one stream, in halves as above."""
        found = await self._ask(
            what="window", of="halves", rows=rows, prompt=prompt, repeats=repeats, rest=rest
        )
        return float(found)


@asynccontextmanager
async def run_engines(terms: Terms, folder: Path) -> AsyncIterator[Direct]:
    """The model of the terms and its halves, loaded, with one thread; the halves' files are made
    in the folder.
    """
    process = await trio.lowlevel.open_process(
        [sys.executable, str(_PROGRAM), str(terms.model), str(terms.context), str(terms.slots),
         str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        direct = Direct(process)
        direct.memory = await direct.hear()
        yield direct
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
