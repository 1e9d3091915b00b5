"""The processes that certify, one for each fixture: llama.cpp ends them now and then, and the rest
of the fixture goes to another one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import trio
from certification.verdict import name

PATIENCE = 120.0
"""Seconds without a line, after which a process hangs."""
_MOST_LIVES = 24
STAGES = Path(__file__).with_name("child.py")
SHARDS = Path(__file__).with_name("shards.py")
_TELLING = re.compile(r"ASSERT|rror|failed|missing|wrong|abort", re.ASCII)


@dataclass(frozen=True, slots=True)
class Terms:
    """How all fixtures are certified."""

    folder: Path
    disturb: float = 0.0
    at_once: int = 2
    program: Path = STAGES


class Hearer(Protocol):
    """Makes a verdict of what a process tells."""

    crashes: dict[str, str]

    @property
    def job(self) -> dict[str, Any]:
        """What a process is to do, beside what all are."""
        ...

    def hear(self, line: dict[str, Any]) -> None: ...


V = TypeVar("V", bound=Hearer)


async def certify(
    fixtures: Sequence[tuple[Path, V]], terms: Terms, say: Callable[[V], None]
) -> list[V]:
    """Fixtures, with what hears of each; these are returned."""
    waiting = list(fixtures)[::-1]

    async def work(folder: Path) -> None:
        await trio.Path(folder).mkdir()
        while waiting:
            path, verdict = waiting.pop()
            await _live(path, verdict, folder, terms)
            say(verdict)

    async with trio.open_nursery() as nursery:
        for number in range(terms.at_once):
            nursery.start_soon(work, terms.folder / str(number))
    return [verdict for _, verdict in fixtures]


async def _live(path: Path, verdict: Hearer, folder: Path, terms: Terms) -> None:
    """One process after the other, until all cuts of the fixture are done."""
    common = {"fixture": str(path), "folder": str(folder), "disturb": terms.disturb}
    for _ in range(_MOST_LIVES):
        command = [str(terms.program), json.dumps(common | verdict.job)]
        begun, why = await _run(command, verdict, folder / "stderr")
        if not begun:
            return
        verdict.crashes[begun] = why
        if not begun[0].isdigit():
            return  # nothing can be compared


async def _run(command: Sequence[str], verdict: Hearer, errors: Path) -> tuple[str, str]:
    """A process, to its end: at what it died, and why; empty where it did not."""
    begun, ended = "loading", False
    with errors.open("wb") as stderr:
        process = await trio.lowlevel.open_process(
            ["nice", sys.executable, "-P", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            rest, hangs = b"", False
            while True:
                with trio.move_on_after(PATIENCE) as scope:
                    part = await process.stdout.receive_some(65_536)
                hangs = scope.cancelled_caught
                if hangs or not part:
                    break
                *lines, rest = (rest + part).split(b"\n")
                for line in map(json.loads, lines):
                    verdict.hear(line)
                    begun = _begun(line, begun)
                    ended = ended or "end" in line or "refused" in line
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                status = await process.wait()
    if ended:
        return "", ""
    return begun, "it hangs" if hangs else _reason(status, errors)


def _begun(line: dict[str, Any], before: str) -> str:
    given = line.get("begin", before)
    return given if isinstance(given, str) else name(tuple(given))


def _reason(status: int, errors: Path) -> str:
    lines = errors.read_text(errors="replace").strip().splitlines() or ["it says nothing"]
    telling = [line for line in lines if _TELLING.search(line)]
    return f"{(telling or lines)[-1].strip()[:240]} (status {status})"
