"""What came of a run: which answers are lost or wrong, how long streams paused and by whose doing,
and how soon the nodes that asked knew. Nothing here runs anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from disasters.clients import Answer, Said

Kind = Literal["kill", "engine", "restart", "stop", "hang", "cut"]
SILENT = frozenset({"stop", "hang", "cut"})
"""Those that no connection tells of."""

TELLS = frozenset({"kill", "restart"})
"""Those after which connections break. A node whose engine alone died is still there."""

NOTICED = frozenset({"peer_suspected", "peer_left"})
"""What a node logs when it routes around a peer from now on."""

AFTERMATH = 10.0
"""Seconds after a disaster, or its end, in which a pause is still its doing."""

AROUND = 1.5
"""Seconds of the logs, of the node that was asked and of those struck, that are shown before and
after a failure and what led to it.
"""

Line = Mapping[str, Any]
Logs = Mapping[str, Sequence[Line]]
"""What each node logged, by its name."""


@dataclass(slots=True)
class Disaster:
    """What was done to a serving node, and until when it lasted."""

    kind: Kind
    victim: str
    peer: str
    """The victim's peer id."""
    start: float
    end: float = float("inf")
    back: float | None = None
    """When every node that asks had it again."""

    def __str__(self) -> str:
        return f"{self.kind} {self.victim}"


@dataclass(frozen=True, slots=True)
class Gap:
    """Two events of one stream, and nothing between."""

    start: float
    end: float
    answer: Answer

    @property
    def seconds(self) -> float:
        return self.end - self.start


def gaps(answers: Iterable[Answer]) -> Iterator[Gap]:
    for answer in answers:
        for start, end in zip(answer.times, answer.times[1:], strict=False):
            yield Gap(start, end, answer)


def blame(gap: Gap, disasters: Iterable[Disaster]) -> Disaster | None:
    """Whose doing a pause is: of those that struck in it a silent one, which takes longest to
    notice; else of what struck, or ended, last before.
    """
    struck = [one for one in disasters if gap.start <= one.start <= gap.end]
    if struck:
        return next((one for one in struck if one.kind in SILENT), struck[-1])
    moments = [
        (moment, one)
        for one in disasters
        for moment in (one.start, one.end)
        if gap.start - AFTERMATH <= moment <= gap.end
    ]
    return max(moments, key=lambda pair: pair[0], default=(0.0, None))[1]


def longest(answers: Sequence[Answer], disasters: Sequence[Disaster]) -> dict[str, float]:
    """The longest pause after a kill, after a silent disaster, and after nothing of the kind."""
    found = {"kill": 0.0, "cut": 0.0, "quiet": 0.0}
    for gap in gaps(answers):
        if gap.seconds <= min(found.values()):
            continue
        cause = blame(gap, disasters)
        key = "quiet" if cause is None else "cut" if cause.kind in SILENT else "kill"
        found[key] = max(found[key], gap.seconds)
    return found


def longest_of(disaster: Disaster, answers: Sequence[Answer], among: Sequence[Disaster]) -> float:
    """The longest pause that this one is to blame for."""
    near = (gap for gap in gaps(answers) if gap.seconds > 0.1 and gap.end >= disaster.start)
    return max((gap.seconds for gap in near if blame(gap, among) is disaster), default=0.0)


def detection(disaster: Disaster, log: Iterable[Line]) -> float:
    """Seconds until that node knew; as long as the disaster lasted, where it never did."""
    for line in log:
        at = moment(line)
        if disaster.start - 0.01 <= at <= disaster.end and is_notice(line, disaster.peer):
            return max(0.0, at - disaster.start)
    return disaster.end - disaster.start


def is_notice(line: Line, peer: str) -> bool:
    return line["event"] in NOTICED and line.get("peer") == peer


def moment(line: Line) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def wrongs(answers: Iterable[Answer], right: Mapping[int, Said]) -> list[Answer]:
    """Those that came to an end, but said something else than in the undisturbed run."""
    return [one for one in answers if not one.error and one.said != right[one.question.number]]


def difference(found: Said, expected: Said) -> str:
    """Where two answers part."""
    ours, theirs = str(found), str(expected)
    place = next(
        (at for at, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other),
        min(len(ours), len(theirs)),
    )
    return (
        f"{len(theirs)} characters and {expected.finish} expected, {len(ours)} and {found.finish} "
        f"came; from {place} on {theirs[place : place + 40]!r}, not {ours[place : place + 40]!r}"
    )


def account(answer: Answer, what: str, disasters: Sequence[Disaster], logs: Logs) -> dict[str, Any]:
    """Everything that may explain what became of an answer."""
    first = answer.times[0] if answer.times else answer.start
    struck = [one for one in disasters if answer.start - AFTERMATH <= one.start <= answer.end]
    moments = [*(one.start for one in struck), answer.end]
    names = {one.peer: one.victim for one in disasters}
    heard = [answer.door, *{one.victim for one in struck}]
    return {
        "what": _named(what, names),
        "question": answer.question.number,
        "kind": answer.question.kind,
        "temperature": answer.question.body["temperature"],
        "asked": answer.door,
        "start": clock(answer.start),
        "end": clock(answer.end),
        "first_token_s": round(first - answer.start, 3),
        "events": len(answer.times),
        "longest_gap_s": round(max((gap.seconds for gap in gaps([answer])), default=0.0), 3),
        "disasters": [f"{clock(one.start)} {one}" for one in struck],
        "log": [
            _named(f"{line['timestamp'][11:23]} {name} {line['event']}: {line['message']}", names)
            for name in heard
            for line in logs.get(name, ())
            if any(abs(moment(line) - at) <= AROUND for at in moments)
        ],
    }


def clock(at: float) -> str:
    """A time as the logs write it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")[11:23]


def _named(text: str, names: Mapping[str, str]) -> str:
    """With nodes' names for their ids."""
    for peer, name in names.items():
        text = text.replace(peer, name)
    return text
