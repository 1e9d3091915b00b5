"""What came of a fixture's expert shards, and the figures of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benches.figures import Figure
from certification.verdict import Kind

WANTED = 51
"""Fixtures of the 53 that have experts."""
PROOFS = ("all", "half")
"""A shard with all experts, and one with half of them."""


@dataclass(slots=True)
class ShardVerdict:
    """Of one fixture."""

    fixture: str
    grouped: bool = False
    experts: int = 0
    kept: int = 0
    refusal: str = ""
    in_place: bool = False
    """Half a model is equal without its experts being put first."""
    differences: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    crashes: dict[str, str] = field(default_factory=dict)

    @property
    def job(self) -> dict[str, Any]:
        return {"grouped": self.grouped}

    def hear(self, line: dict[str, Any]) -> None:
        """A line of the child's."""
        self.refusal = line.get("refused", self.refusal)
        self.experts, self.kept = line.get("experts", self.experts), line.get("kept", self.kept)
        self.in_place = line.get("in_place", self.in_place)
        if "proof" in line:
            self.differences[line["proof"]] = line["difference"]
            if line["difference"]:
                why = line["why"] or f"differs by {line['difference']:.1e}"
                self.failures[line["proof"]] = why

    @property
    def unmade(self) -> str:
        """Why llama.cpp does not run the whole model in groups; empty where it does."""
        return self.crashes.get("whole", "") if self.grouped else ""

    @property
    def kind(self) -> Kind:
        if self.crashes:
            return "crashed"
        if self.failures:
            return "wrong"
        return "exact" if set(self.differences) == set(PROOFS) else "refused"

    @property
    def why(self) -> str:
        """For one that is not exact."""
        told = {**self.failures, **self.crashes}
        return self.refusal or "; ".join(f"{what}: {why}" for what, why in told.items())


def figures(verdicts: Sequence[ShardVerdict], *, whole: bool) -> list[Figure]:
    """`whole`: of all fixtures, and not of some."""
    plain = [one for one in verdicts if not one.grouped]
    grouped = [one for one in verdicts if one.grouped and not one.unmade]
    kinds, others = Counter(one.kind for one in plain), Counter(one.kind for one in grouped)
    in_place = sum(one.in_place for one in plain if one.kind == "exact")
    return [
        Figure("shards_exact", kinds["exact"], "fixtures", *((">=", WANTED) if whole else ())),
        Figure("shards_exact_in_place", in_place, "fixtures"),
        Figure("shards_refused", kinds["refused"], "fixtures"),
        Figure("shards_wrong", kinds["wrong"], "fixtures", "<=", 0),
        Figure("shards_crashed", kinds["crashed"], "fixtures", "<=", 0),
        Figure("grouped_exact", others["exact"], "fixtures"),
        Figure("grouped_refused", others["refused"], "fixtures"),
        Figure("grouped_wrong", others["wrong"] + others["crashed"], "fixtures", "<=", 0),
        Figure("grouped_unmade", sum(bool(one.unmade) for one in verdicts), "fixtures"),
    ]


def rows(verdicts: Iterable[ShardVerdict]) -> list[dict[str, Any]]:
    """For the file of figures: what is behind them."""
    return [
        {
            "fixture": one.fixture, "grouped": one.grouped, "kind": one.kind,
            "experts": one.experts, "kept": one.kept, "in_place": one.in_place,
            "differences": one.differences, "why": one.why, "unmade": one.unmade,
        }
        for one in verdicts
    ]  # fmt: skip
