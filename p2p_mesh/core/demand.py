"""Which models are wanted how much: each node's own count, what it reports, and the mesh's sum.

A rate is in requests a minute and decays by half in HALF_LIFE seconds, at whoever holds it: so a
node whose clients have left need not say so. Reports travel in envelopes of their authors
(specs/demand/README.md). Folding is idempotent and ignores order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.records import Count, Record, Role
from p2p_mesh.core.wire import decode
from p2p_mesh.errors import Refused

TOPIC = "demand"
"""The topic, and what the signature of an envelope covers beside the report."""

HALF_LIFE = 60.0

WISH = 1.0
"""What a wish counts, in requests a minute, while the node that wishes runs."""

GAP = 5.0
"""Seconds between two reports of a node at least,"""

HEARTBEAT = 20.0
"""and at most, while there is something to report."""

LIFETIME = 60.0
"""Seconds that a report holds: two of its successors may get lost."""

CROWD = 100
"""Reporting nodes from which all three times stretch, in proportion, so that what a node hears
in a minute is bounded;
"""

STRETCH = 10.0
"""so many times at most: a report may hold for 600 s."""

SKEW = 60.0
"""Seconds that a member's clock may be ahead of ours."""

TRACE = 0.05
"""Requests a minute below which a model is not wanted: one request, four minutes later."""

MAX_COUNTED = 256
MAX_RATES = 32
MAX_WISHES = 16
MAX_AUTHORS = 10_000
MAX_ENVELOPE = 64 << 10
MAX_BYTES = 32 << 20
"""Of all reports that are kept, as they came."""

MOST: Mapping[Role, float] = {"member": 600.0, "client": 60.0}
"""Requests a minute of one model that a single author counts for at most, whatever it says: else
one of them could steer every standby.
"""

_ONE = math.log(2) * 60.0 / HALF_LIFE
"""What one request adds to a rate: then n requests a minute, for long, are a rate of n."""

_NEWS = 0.5
"""A rate that differs by this, and by a quarter, from what the others believe is reported."""

Model = Annotated[ModelId, Meta(min_length=1, max_length=256)]


class Rate(Record, frozen=True, kw_only=True):
    model: Model
    rate: Annotated[float, Meta(ge=0, le=1e6)]
    """Requests a minute, when the report was issued."""


class DemandReport(Record, frozen=True, kw_only=True):
    """What is wanted at one node, by its clients and by itself. Times in seconds."""

    sequence: tuple[Count, Count]
    """Boot time in milliseconds, then a counter: later is newer, also after a restart."""
    issued_at: Annotated[float, Meta(ge=0, le=2**53)]
    lifetime: Annotated[float, Meta(gt=0, le=600)]
    rates: Annotated[tuple[Rate, ...], Meta(max_length=MAX_RATES)] = ()
    wishes: Annotated[tuple[Model, ...], Meta(max_length=MAX_WISHES)] = ()
    """Models that its owner asked it to serve, and that it cannot serve."""


def decayed(rate: float, age: float) -> float:
    # A clock may be set back: nothing grows by that.
    return float(rate * 0.5 ** (max(0.0, age) / HALF_LIFE))


class Tally:
    """How often each model was asked for at this node, of late."""

    def __init__(self) -> None:
        self._held: dict[ModelId, tuple[float, float]] = {}

    def count(self, model: ModelId, now: float) -> None:
        """One request. Past MAX_COUNTED models the coldest is forgotten."""
        rate, at = self._held.pop(model, (0.0, now))
        if len(self._held) >= MAX_COUNTED:
            rates = self._decayed(now)
            del self._held[min(rates, key=lambda one: rates[one])]
        self._held[model] = decayed(rate, now - at) + _ONE, now

    def rates(self, now: float) -> dict[ModelId, float]:
        """Requests a minute; what has all but decayed is left out."""
        return {model: rate for model, rate in self._decayed(now).items() if rate >= TRACE}

    def _decayed(self, now: float) -> dict[ModelId, float]:
        return {model: decayed(rate, now - at) for model, (rate, at) in self._held.items()}


class Reporter:
    """Decides when a node reports what: at a change, and at a slow heartbeat, while there is
    demand; once more when there is none left; and never twice within GAP seconds.
    """

    def __init__(self, boot: float) -> None:
        self._boot = int(boot * 1000)
        self._count = 0
        self._said: DemandReport | None = None
        self._is_repeated = False
        self._stretch = 1.0

    def adapt(self, reporting: int) -> None:
        """So many nodes report: the more there are, the less often each does."""
        self._stretch = min(STRETCH, max(1.0, reporting / CROWD))

    def repeat(self) -> None:
        """Somebody is new here, and has heard nothing: the next report is due without a change."""
        self._is_repeated = True

    def next(
        self, rates: Mapping[ModelId, float], wishes: Iterable[ModelId], now: float
    ) -> DemandReport | None:
        """The report that is due now, if one is."""
        hottest = sorted(rates, key=lambda model: (-rates[model], model))[:MAX_RATES]
        report = DemandReport(
            sequence=(self._boot, self._count + 1),
            issued_at=now,
            lifetime=LIFETIME * self._stretch,
            rates=tuple(Rate(model=model, rate=min(rates[model], 1e6)) for model in hottest),
            wishes=tuple(sorted(set(wishes)))[:MAX_WISHES],
        )
        if self.rest(now) > 0 or not self._is_news(report):
            return None
        self._count += 1
        self._said, self._is_repeated = report, False
        return report

    def rest(self, now: float) -> float:
        """Seconds until the next report may be made."""
        gap = GAP * self._stretch
        age = now - self._said.issued_at if self._said else gap
        return gap - age if 0 <= age < gap else 0.0

    @property
    def is_speaking(self) -> bool:
        """Whether the others believe that something is wanted here."""
        return self._said is not None and bool(self._said.rates or self._said.wishes)

    def _is_news(self, report: DemandReport) -> bool:
        if self._said is None:
            return bool(report.rates or report.wishes)
        if report.wishes != self._said.wishes or (self.is_speaking and not _is_some(report)):
            return True
        age = report.issued_at - self._said.issued_at
        if _is_some(report) and (self._is_repeated or not 0 <= age < HEARTBEAT * self._stretch):
            return True
        return _differ(_rates(report, 0.0), _rates(self._said, age))


def _is_some(report: DemandReport) -> bool:
    return bool(report.rates or report.wishes)


def _rates(report: DemandReport, age: float) -> dict[ModelId, float]:
    return {one.model: decayed(one.rate, age) for one in report.rates}


def _differ(mine: Mapping[ModelId, float], theirs: Mapping[ModelId, float]) -> bool:
    return any(
        abs(mine.get(model, 0.0) - theirs.get(model, 0.0)) > max(_NEWS, theirs.get(model, 0.0) / 4)
        for model in mine.keys() | theirs.keys()
    )


@dataclass(frozen=True, slots=True)
class Heard:
    """A report as it came: since when it decays here, and until when it holds."""

    author: PeerId
    report: DemandReport
    at: float
    expires: float
    size: int
    digest: bytes
    """Of the report as it came."""
    most: float = MOST["member"]
    """Of each rate, so much counts."""


def read(author: PeerId, payload: bytes, now: float, *, role: Role = "member") -> Heard:
    """What an author, whose envelope was checked, reports. Raises RemoteError."""
    report: DemandReport = decode(payload, DemandReport)
    if max(report.issued_at, report.sequence[0] / 1000) > now + SKEW:
        raise Refused("a report of demand from the future; one of the two clocks is wrong")
    at = min(now, report.issued_at + SKEW)
    if at + report.lifetime <= now:
        raise Refused("a report of demand that has lapsed")
    digest = hashlib.blake2b(payload, digest_size=16).digest()
    return Heard(
        author, report, at, at + report.lifetime,
        size=len(payload), digest=digest, most=MOST[role],
    )  # fmt: skip


class Demand:
    """The newest report of each node, and what they add up to."""

    def __init__(self) -> None:
        self._held: dict[PeerId, Heard] = {}
        self._bytes = 0

    def apply(self, heard: Heard) -> bool:
        """Takes a report in; True if it was news. Gossip repeats, so a report replaces. Where there
        is no more room, those go that would lapse soonest: nobody new is shut out.
        """
        held = self._held.get(heard.author)
        if held is not None and _newness(held) >= _newness(heard):
            return False
        if held is not None:
            self._drop(held)
        while len(self._held) >= MAX_AUTHORS or self._bytes + heard.size > MAX_BYTES:
            self._drop(min(self._held.values(), key=lambda one: one.expires))
        self._held[heard.author] = heard
        self._bytes += heard.size
        return True

    def _drop(self, heard: Heard) -> None:
        del self._held[heard.author]
        self._bytes -= heard.size

    def __len__(self) -> int:
        """The nodes that reported, and whose reports were not yet dropped."""
        return len(self._held)

    def expire(self, now: float) -> None:
        """Drops what has lapsed, and with it the sequences that it was newer than."""
        for heard in [one for one in self._held.values() if one.expires <= now]:
            self._drop(heard)

    def totals(self, now: float) -> dict[ModelId, float]:
        """Requests a minute for each model that somebody wants."""
        sums: dict[ModelId, list[float]] = {}
        for heard in self._held.values():
            if now < heard.expires:
                for model, rate in wanted(heard.report, now - heard.at, heard.most).items():
                    sums.setdefault(model, []).append(rate)
        # fsum: the order in which reports came must not show in the last bit.
        rates = {model: math.fsum(parts) for model, parts in sums.items()}
        return {model: rate for model, rate in rates.items() if rate >= TRACE}


def wanted(report: DemandReport, age: float, most: float = MOST["member"]) -> dict[ModelId, float]:
    """What one report amounts to when it is `age` seconds old; of each rate `most` counts."""
    rates = {one.model: decayed(min(one.rate, most), age) for one in report.rates}
    for model in set(report.wishes):
        rates[model] = rates.get(model, 0.0) + WISH
    return rates


def _newness(heard: Heard) -> tuple[tuple[int, int], bytes]:
    # A digest breaks the tie where a node, against the rules, used a sequence twice: every node
    # then keeps the same one, whatever came first.
    return heard.report.sequence, heard.digest
