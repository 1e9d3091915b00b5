#!/usr/bin/env python
"""Proves that answers survive: 40 clients ask two nodes of a mesh that serve nothing, while the
three that serve the model are killed, stopped, cut off and restarted at random.

Each node is a process in a network namespace of its own, all are `--deterministic`. First every
question is asked while nothing happens; then the same questions are asked again, by chance, and
each answer must be the same. It takes root, Debian's iproute2, and about five minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import psutil
import trio
from benches.figures import Figure, run, show
from disasters.clients import Answer, Door, Said, ask
from disasters.harm import strike
from disasters.questions import Question, make_questions
from disasters.town import Town, open_town
from disasters.verdict import (
    SILENT,
    TELLS,
    Disaster,
    account,
    clock,
    detection,
    difference,
    longest,
    longest_of,
    wrongs,
)

from p2p_mesh.testing.machines import is_possible
from p2p_mesh.testing.models import Shape, write_model

MODEL = "chaos"
SHAPE = Shape(
    layers=3, width=256, heads=8, kv_heads=4, feed=512, vocabulary=65_536, context=1536
)  # fmt: skip
"""Large models read fast and write slowly, and so does this one, by its vocabulary: what was read
needs no logits. Its answers take seconds, and two cores are enough for all nodes.
"""

CLIENTS = 40
QUESTIONS = 48
ANSWERS = 200
THINKING = 14.0
"""Seconds that a client waits between two questions, on the average. With less, pauses are those of
the cores: here five nodes, three engines and forty clients share two of them.
"""

AT_A_TIME = 10
"""Questions that are under way in the undisturbed run."""

SHOWN, LINES = 5, 12
"""Lost and wrong answers that are told of, and lines of the logs around each; FILE has all."""


@dataclass(slots=True)
class Run:
    """What came of the disturbed run."""

    answers: list[Answer]
    right: dict[int, Said]
    disasters: list[Disaster]
    logs: dict[str, list[Any]]
    asked: tuple[str, ...]
    calm: list[Answer]
    """Those of the undisturbed run."""
    busy: float
    """Per cent of the cores' time that something ran."""
    lag: float
    """Seconds that this process was late at worst, by which a pause may seem longer."""

    @property
    def lost(self) -> list[Answer]:
        return [one for one in self.answers if one.error]

    @property
    def wrong(self) -> list[Answer]:
        return wrongs(self.answers, self.right)

    @property
    def resumed(self) -> int:
        """How often another node went on with an answer: a run without that proves nothing."""
        lines = (line for name in self.asked for line in self.logs[name])
        return sum(line["event"] == "answer_resumed" for line in lines)

    def detected(self, kinds: frozenset[str]) -> float:
        """Seconds until the last node that asks knew of the last noticed disaster."""
        return max(
            (detection(disaster, self.logs[name])
             for disaster in self.disasters if disaster.kind in kinds for name in self.asked),
            default=0.0,
        )  # fmt: skip

    def figures(self) -> list[Figure]:
        pauses = longest(self.answers, self.disasters)
        first = [one.times[0] - one.start for one in self.answers if one.times]
        calm = longest(self.calm, [])["quiet"]
        return [
            Figure("answers", len(self.answers), "answers", ">=", ANSWERS),
            Figure("lost", len(self.lost), "answers", "<=", 0),
            Figure("wrong", len(self.wrong), "answers", "<=", 0),
            Figure("longest_gap_kill_s", pauses["kill"], "s", "<=", 2),
            Figure("longest_gap_cut_s", pauses["cut"], "s", "<=", 6),
            Figure("detected_kill_s", self.detected(TELLS), "s", "<=", 1),
            Figure("detected_silent_s", self.detected(SILENT), "s", "<=", 6),
            Figure("longest_gap_quiet_s", pauses["quiet"], "s", "<=", 2.0),
            Figure("longest_gap_undisturbed_s", calm, "s"),
            Figure("first_token_median_s", median(first or [0.0]), "s"),
            Figure("first_token_worst_s", max(first, default=0.0), "s"),
            Figure("disasters", len(self.disasters), "disasters"),
            Figure("resumed", self.resumed, "times"),
            Figure("cores_busy", self.busy, "%"),
            Figure("clients_late_s", self.lag, "s"),
        ]

    def accounts(self) -> list[dict[str, Any]]:
        """What became of each answer that is lost or wrong."""
        tell = partial(account, disasters=self.disasters, logs=self.logs)
        return [tell(one, f"lost: {one.error}") for one in self.lost] + [
            tell(one, f"wrong: {difference(one.said, self.right[one.question.number])}")
            for one in self.wrong
        ]

    def _noticed(self, disaster: Disaster) -> list[float] | None:
        """By each node that asks; None where there is nothing that a peer would notice."""
        if disaster.kind not in SILENT | TELLS:
            return None
        return [round(detection(disaster, self.logs[name]), 3) for name in self.asked]

    def events(self) -> list[dict[str, Any]]:
        """What each disaster did; null for a node that the others did not find again."""
        return [
            {
                "at": clock(one.start),
                "kind": one.kind,
                "victim": one.victim,
                "seconds": round(one.end - one.start, 1),
                "known_again_s": None if one.back is None else round(one.back - one.end, 1),
                "detected_s": self._noticed(one),
                "longest_gap_s": round(longest_of(one, self.answers, self.disasters), 3),
            }
            for one in self.disasters
        ]


class Clients:
    """Forty people, of whom each asks again when it has read and thought."""

    def __init__(self, questions: Sequence[Question], random: Random) -> None:
        self.answers: list[Answer] = []
        self.under_way = 0
        self._questions, self._random = questions, random

    async def ask_all(self, doors: Sequence[Door]) -> None:
        """Every question once."""
        waiting = deque(self._questions)
        async with trio.open_nursery() as nursery:
            for _, door in zip(range(AT_A_TIME), cycle(doors), strict=False):
                nursery.start_soon(self._work, door, waiting)

    async def _work(self, door: Door, waiting: deque[Question]) -> None:
        while waiting:
            await self._ask(door, waiting.popleft())

    async def ask_for(self, doors: Sequence[Door], seconds: float) -> None:
        """Questions by chance; whoever asked in time gets an answer."""
        over = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            for _, door in zip(range(CLIENTS), cycle(doors), strict=False):
                nursery.start_soon(self._ask_until, door, over)

    async def _ask_until(self, door: Door, over: float) -> None:
        while True:
            await trio.sleep(self._random.uniform(0, 2 * THINKING))
            if trio.current_time() >= over:
                return
            await self._ask(door, self._random.choice(self._questions))

    async def _ask(self, door: Door, question: Question) -> None:
        self.under_way += 1
        self.answers.append(await ask(door, question))
        self.under_way -= 1


async def prove(seconds: float, seed: int) -> Run:
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        model = Path(folder) / f"{MODEL}.gguf"
        write_model(model, shape=SHAPE, endless=True)
        questions = make_questions(Random(seed), QUESTIONS, MODEL)
        _say("starting five nodes")
        async with open_town(Path(folder), model) as town:
            calm = await _undisturbed(town, questions)
            _say(f"{len(calm)} answers undisturbed; now for {seconds:g} seconds of disasters")
            return await _disturbed(town, questions, calm, (seconds, Random(seed)))


async def _undisturbed(town: Town, questions: Sequence[Question]) -> list[Answer]:
    """Every question once. Raises RuntimeError where one is not answered."""
    clients = Clients(questions, Random(0))
    await clients.ask_all(town.doors)
    if failed := next((one for one in clients.answers if one.error), None):
        raise RuntimeError(f"question {failed.question.number} undisturbed: {failed.error}")
    return clients.answers


async def _disturbed(
    town: Town, questions: Sequence[Question], calm: list[Answer], chance: tuple[float, Random]
) -> Run:
    seconds, random = chance
    clients = Clients(questions, Random(random.random()))
    disasters: list[Disaster] = []
    late: list[float] = [0.0]
    psutil.cpu_percent()
    async with trio.open_nursery() as watching:
        watching.start_soon(_watch, late.append)
        watching.start_soon(_report, clients)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clients.ask_for, town.doors, seconds)
            disasters += await strike(town, random, seconds, lambda: clients.under_way)
        watching.cancel_scope.cancel()
    return Run(
        clients.answers,
        {one.question.number: one.said for one in calm},
        disasters,
        town.logs,
        tuple(door.name for door in town.doors),
        calm,
        busy=psutil.cpu_percent(),
        lag=max(late),
    )


async def _watch(note: Callable[[float], None]) -> None:
    """How late this process wakes up: each time at which it was the worst so far."""
    worst = 0.0
    while True:
        due = trio.current_time() + 0.02
        await trio.sleep_until(due)
        if (late := trio.current_time() - due) > worst:
            worst = late
            note(late)


async def _report(clients: Clients) -> None:
    while True:
        await trio.sleep(30)
        lost = sum(bool(one.error) for one in clients.answers)
        _say(f"{len(clients.answers)} answers, {lost} lost")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _tell(came: Run) -> None:
    for one in came.accounts()[:SHOWN]:
        log = one["log"][-LINES:]
        _say(json.dumps({**one, "log": log}, indent=2, ensure_ascii=False))
    for event in came.events():
        _say("  ".join(f"{name} {value}" for name, value in event.items()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=180, metavar="N",
        help="how long disasters come (default: 180)")  # fmt: skip
    add("--seed", type=int, default=1, metavar="N",
        help="of what is asked and of what happens (default: 1)")  # fmt: skip
    add("--json", type=Path, metavar="FILE",
        help="also write the figures there, and what each failure came from")  # fmt: skip
    given = parser.parse_args()
    if not is_possible():
        parser.error("network namespaces need root and iproute2")
    came = run(partial(prove, given.seconds, given.seed))
    figures = came.figures()
    _tell(came)
    show(figures)
    if given.json:
        rows = [one.row() for one in figures]
        found = {"figures": rows, "disasters": came.events(), "failures": came.accounts()}
        given.json.write_text(json.dumps(found, indent=2, ensure_ascii=False))
    return 0 if all(one.holds for one in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
