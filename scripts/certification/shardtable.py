"""The part of docs/families.md that tells of expert shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version

from certification.shardverdict import ShardVerdict
from certification.table import part

HEAD = "# Families: which models can be split into expert shards\n"
TITLE = (
    HEAD
    + """
Written by `scripts/certify --shards` from a whole run, with llama-cpp-python {version}: do not edit
it.

A row stands for a fixture with a mixture of experts: as above, but with 32 experts of which a token
goes through four (as they come they have two, and use both). Two shards of each were compared with
the whole model: one with all experts, and one with half of them, others in every layer, with the
whole model whose routers do not see the rest. Both must be equal to the last bit, over a prompt,
decoding, two sequences, a step back and a copied sequence. *In groups* is the same with the experts
in groups, of which the router first chooses some, and with as many of each group in the shard.

*In place* says that half a model is equal to the whole one as it stands. Where it is not, the
router sums over all experts, and the order of a sum changes its last bits: such a shard is equal to
the whole model with its experts in the shard's order, those that it lacks behind them.

A model of a refused family is served whole, in stages or from disk, but not in shards. So is one
of a listed family whose file chooses experts by tables of tokens, as the first layers of deepseek4
may, and a llama4 of 128 experts, since its graph is another with that number.
"""
)


def shard_page(verdicts: Sequence[ShardVerdict]) -> str:
    plain = [one for one in verdicts if not one.grouped]
    grouped = {one.fixture: one for one in verdicts if one.grouped}
    exact = [one for one in plain if one.kind == "exact"]
    refused = [one for one in plain if one.kind == "refused"]
    failed = [one for one in verdicts if one.kind in ("wrong", "crashed") and not one.unmade]
    told = ", ".join(f"{count} {kind}" for kind, count in _kinds(plain).most_common())
    parts = [TITLE.format(version=version("llama-cpp-python")),
             f"Of {len(plain)} fixtures with experts: {told}.\n"]  # fmt: skip
    rows = ((one.fixture, "yes" if one.in_place else "", _grouped(grouped.get(one.fixture)))
            for one in exact)  # fmt: skip
    parts += part("Shards: exact", ("family", "in place", "in groups"), rows)
    rows = ((one.fixture, one.why) for one in refused)
    parts += part("Shards: refused", ("family", "why"), rows)
    found = ((one.fixture, "yes" if one.grouped else "", one.why) for one in failed)
    parts += part("Shards: wrong", ("family", "in groups", "how"), found)
    return "\n".join(parts)


def _kinds(verdicts: Sequence[ShardVerdict]) -> Counter[str]:
    return Counter(one.kind for one in verdicts)


def _grouped(one: ShardVerdict | None) -> str:
    if one is None or one.unmade:
        return "not run so"
    return one.kind


def stages_of(page: str) -> str:
    """What a page tells of stages."""
    return page.partition(HEAD)[0].rstrip() + "\n"


def shards_of(page: str) -> str:
    """What it tells of shards; empty where it tells nothing."""
    _, head, rest = page.partition(HEAD)
    return head + rest
