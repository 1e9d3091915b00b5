"""A trained mixture of experts, cut into two parts, for tests of who holds what a prompt needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meshnode_expert_shards.composing import Source, compose
from meshnode_expert_shards.parts import Parts, mask

from p2p_mesh.core.experts.layout import Layout, layout
from p2p_mesh.core.experts.routers import router_recipe
from p2p_mesh.core.experts.shard import shard_recipe
from p2p_mesh.core.names import Digest
from p2p_mesh.serve.package.source import read_source

DEMO = Path(__file__).parents[2] / "models" / "demo-moe.gguf"
QUESTIONS = [
    "Who lives in the lighthouse of Tidewick, and what do they do all day long?",
    "def f(x): return x + 1 for i in range(10)",
    "the price of bread is three coins and two",
    "The harbour master counts the boats in the morning and again at night.",
]


@dataclass(frozen=True)
class Cut:
    """The files of a model's parts."""

    whole: Path
    experts: Layout
    routers: Path
    shards: tuple[Path, ...]
    dealt: Parts
    """As the first of them is told."""

    def chosen(self, part: int) -> Sequence[int]:
        bits = int.from_bytes(self.dealt.experts[part][0], "little")
        return [one for one in range(self.experts.experts) if bits >> one & 1]


def cut(whole: Path, folder: Path, *parts: Sequence[int]) -> Cut:
    """With the same experts in every layer."""
    header = read_source(whole).header
    found, routers = layout(header), None
    assert found is not None
    routers = router_recipe(header, found)
    assert routers is not None
    data = whole.read_bytes()
    source = Source(header, lambda offset, size: data[offset : offset + size])
    compose(routers, keys=source, sources=[source], target=folder / "routers.gguf")
    layers = len(found.layers)
    for number, chosen in enumerate(parts):
        recipe = shard_recipe(
            header, found, [tuple(chosen)] * layers, model=Digest("1" * 64), mass=0.5,
            part=number, parts=len(parts),
        )  # fmt: skip
        compose(recipe, keys=source, sources=[source], target=folder / f"{number}.gguf")
    peers = tuple("abcdefgh"[: len(parts)])
    masks = tuple((mask(chosen, found.experts),) * layers for chosen in parts)
    shards = tuple(folder / f"{number}.gguf" for number in range(len(parts)))
    return Cut(whole, found, folder / "routers.gguf", shards, Parts(0, peers, masks))
