"""What came of a fixture, and the figures of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benches.figures import Figure
from certification.cuts import Cut

Kind = Literal["exact", "refused", "wrong", "crashed"]

TOLERANCE = 1e-6
"""Of the largest logit. All but a few families are equal to the last bit; in those a factor is
multiplied into weights, which rounds otherwise.
"""
WANTED = 124
"""Fixtures of the 128."""


@dataclass(slots=True)
class Verdict:
    """Of one fixture."""

    fixture: str
    deep: bool = False
    layers: int = 0
    refusal: str = ""
    whole: dict[str, Any] = field(default_factory=dict)
    barred: dict[Cut, str] = field(default_factory=dict)
    differences: dict[Cut, float] = field(default_factory=dict)
    entries: set[str] = field(default_factory=set)
    fillers: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    """What went wrong, by the cut; "whole" and "deepening" stand for what comes before."""
    crashes: dict[str, str] = field(default_factory=dict)

    def hear(self, line: dict[str, Any]) -> None:
        """A line of the child's."""
        self.refusal = line.get("refused", self.refusal)
        self.layers = line.get("layers", self.layers)
        self.whole = line.get("whole", self.whole)
        self.barred |= {tuple(cut): why for cut, why in line.get("barred", ())}
        if "cut" in line:
            cut = tuple(line["cut"])
            self.differences[cut] = line["difference"]
            self.entries |= set(line["entries"][1:])
            self.fillers = max(self.fillers, line["fillers"])
            if line["difference"] > TOLERANCE:
                self.failures[name(cut)] = line["why"] or f"differs by {line['difference']:.1e}"

    @property
    def job(self) -> dict[str, Any]:
        return {"deep": self.deep, "done": self.done}

    @property
    def done(self) -> list[Cut]:
        crashed = [tuple(map(int, cut.split(","))) for cut in self.crashes if cut[0].isdigit()]
        return [*self.differences, *crashed]

    @property
    def worst(self) -> float:
        return max(self.differences.values(), default=0.0)

    @property
    def unmade(self) -> str:
        """Why there is no deep fixture of it; empty where there is one, or need not be."""
        if not self.deep or self.differences:
            return ""
        return self.failures.get("deepening", "") or self.crashes.get("deepening", "") or (
            self.crashes.get("whole", "") or self.failures.get("whole", "")
        )  # fmt: skip

    @property
    def kind(self) -> Kind:
        if self.crashes:
            return "crashed"
        if self.failures:
            return "wrong"
        return "exact" if self.differences else "refused"

    @property
    def why(self) -> str:
        """For one that is refused."""
        return self.refusal or next(iter(self.barred.values()), "")


def name(cut: Cut) -> str:
    return ",".join(map(str, cut))


def figures(verdicts: Sequence[Verdict], *, whole: bool) -> list[Figure]:
    """`whole`: of all fixtures, and not of some."""
    shallow = Counter(one.kind for one in verdicts if not one.deep)
    deep = [one for one in verdicts if one.deep and not one.unmade]
    kinds = Counter(one.kind for one in deep)
    bits = sum(one.kind == "exact" and not one.worst for one in verdicts if not one.deep)
    return [
        Figure("exact", shallow["exact"], "fixtures", *((">=", WANTED) if whole else ())),
        Figure("exact_to_the_last_bit", bits, "fixtures"),
        Figure("refused", shallow["refused"], "fixtures"),
        Figure("wrong", shallow["wrong"], "fixtures", "<=", 0),
        Figure("crashed", shallow["crashed"], "fixtures", "<=", 0),
        Figure("deep_exact", kinds["exact"], "fixtures"),
        Figure("deep_refused", kinds["refused"], "fixtures"),
        Figure("deep_wrong", kinds["wrong"] + kinds["crashed"], "fixtures", "<=", 0),
        Figure("deep_unmade", sum(bool(one.unmade) for one in verdicts), "fixtures"),
    ]


def rows(verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    """For the file of figures: what is behind them."""
    return [
        {
            "fixture": one.fixture, "deep": one.deep, "kind": one.kind, "layers": one.layers,
            "why": one.why if one.kind == "refused" else "", "unmade": one.unmade,
            "difference": one.worst, "cuts": [name(cut) for cut in one.differences],
            "barred": {name(cut): why for cut, why in one.barred.items()},
            "entries": sorted(one.entries), "fillers": one.fillers, "whole": one.whole,
            "failures": one.failures | one.crashes,
        }
        for one in verdicts
    ]  # fmt: skip
