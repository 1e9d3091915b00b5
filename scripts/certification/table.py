"""docs/families.md, from what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version

from certification.verdict import Verdict, name

TITLE = """# Families: which models can be cut into stages

Written by `scripts/certify` from a whole run, with llama-cpp-python {version}: do not edit it.

A row stands for a fixture: a tiny random model of that architecture, as llama.cpp's own tests write
them. Each was cut at every boundary, and in three, and each cut compared with the uncut model:
logits over a prompt, decoding, two sequences, a step back (tokens are taken back, or a snapshot is
restored where the model keeps a state) and a copied sequence, with float32 between the stages.
*Deep* is the same with the layers repeated to six and more, and a prompt that is longer than the
sliding window. Exact means equal to the last bit, or, where a number stands there, within that
part of the largest logit.

What a later stage is fed: *rows*, the activation as embeddings; *inject*, token ids, with the
activation in the place of what the graph has computed. *Fillers* are layers that a stage holds
beside its own because the graph of its family wants them.

A model of a family that is not listed is refused by name before anything loads, and so is one of a
listed family where its file shows that a stage would not compute the same; the refusal says why.
"""
SHOWN = 12
"""Cuts that are listed; of more, the number is told."""

Rows = Iterable[Sequence[str]]


def page(verdicts: Sequence[Verdict]) -> str:
    deep = {one.fixture: one for one in verdicts if one.deep}
    plain = [one for one in verdicts if not one.deep]
    exact = [one for one in plain if one.kind == "exact"]
    limited = [one for one in exact if _barred(one, deep)]
    free = [one for one in exact if not _barred(one, deep)]
    refused = [one for one in plain if one.kind == "refused"]
    failed = [one for one in verdicts if one.kind in ("wrong", "crashed") and not one.unmade]
    parts = [TITLE.format(version=version("llama-cpp-python")), _summary(plain)]
    head = ("family", "layers", "later stages", "fillers", "deep")
    parts += part("Exact", head, ((*_row(one), _deep(one, deep)) for one in free))
    head = ("family", "layers", "later stages", "fillers", "deep", "not cut", "why")
    rows = ((*_row(one), _deep(one, deep), *_barred(one, deep)) for one in limited)
    parts += part("Exact with these cuts only", head, rows)
    parts += part("Refused", ("family", "why"), ((one.fixture, one.why) for one in refused))
    found = ((one.fixture, cut, why) for one in failed
             for cut, why in (one.failures | one.crashes).items())  # fmt: skip
    parts += part("Wrong", ("family", "cut", "how"), found)
    return "\n".join(parts)


def _summary(plain: Sequence[Verdict]) -> str:
    kinds = Counter(one.kind for one in plain)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return f"Of {len(plain)} fixtures: {told}.\n"


def part(title: str, head: Sequence[str], rows: Rows) -> list[str]:
    listed = list(rows)
    lines = [head, ["---"] * len(head), *listed]
    text = "\n".join(f"| {' | '.join(one)} |" for one in lines)
    return [f"## {title}\n\n{text}\n"] if listed else []


def _row(one: Verdict) -> tuple[str, ...]:
    fillers = str(one.fillers) if one.fillers else ""
    return _name(one), str(one.layers), ", ".join(sorted(one.entries)), fillers


def _name(one: Verdict) -> str:
    return f"{one.fixture} ({one.worst:.0e})" if one.worst else one.fixture


def _deep(one: Verdict, deep: Mapping[str, Verdict]) -> str:
    found = deep.get(one.fixture)
    if found is None or found.unmade:
        return "no such fixture"
    worst = f" ({found.worst:.0e})" if found.worst else ""
    return f"{found.kind}, {len(found.differences)} cuts{worst}"


def _barred(one: Verdict, deep: Mapping[str, Verdict]) -> tuple[str, ...]:
    """Cuts that cannot be, and the first reason; empty where there are none."""
    depths = one, deep.get(one.fixture, one)
    found = [(f"{name(cut)} of {each.layers}", why)
             for each in depths for cut, why in each.barred.items()]  # fmt: skip
    cuts = list(dict.fromkeys(cut for cut, _ in found))
    if not cuts:
        return ()
    more = f" and {len(cuts) - SHOWN} more" if len(cuts) > SHOWN else ""
    return "; ".join(cuts[:SHOWN]) + more, found[0][1]
