"""The routers of a whole model, in a file of their own: a shard has the rows of its own experts,
and cannot tell what the others would have got of a prompt. The file is a GGUF with those tensors
alone.

Of many or large routers some layers are enough, evenly spread: what a prompt needs is a mean over
layers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from p2p_mesh.core.experts.layout import Layer, Layout
from p2p_mesh.core.experts.shard import ShardRecipe, uncut
from p2p_mesh.core.gguf import Header, Tensor

MOST = 128 << 20
"""Bytes of routers; they are mapped, and read once for each prompt that is weighed."""
TYPES = {0: "F32", 1: "F16", 30: "BF16"}
"""Those that are read, by GGUF's number. Others are not known to be routers of any model."""

_ROUTER = re.compile(r"(ffn_gate_inp\.(weight|bias)|exp_probs_b(\.bias)?)\Z")
_KEYS = {"general.architecture", "general.alignment"}


def router_recipe(header: Header, of: Layout, most: int = MOST) -> ShardRecipe | None:
    """None: they are in a form that is not read."""
    held = {one.name: one for one in header.tensors}
    layers = [found for layer in of.layers if _is_known(found := _routers(layer, held))]
    if not layers:
        return None
    total = sum(one.size for found in layers for one in found)
    chosen = layers[:: -(-total // most)]
    return ShardRecipe(
        metadata={},
        left_out=tuple(sorted((header.metadata.keys() | header.entries.keys()) - _KEYS)),
        tensors=tuple(uncut(one) for found in chosen for one in found),
    )


def _routers(layer: Layer, held: dict[str, Tensor]) -> Sequence[Tensor]:
    return [held[one.name] for one in layer.small if _ROUTER.search(one.name)]


def _is_known(routers: Sequence[Tensor]) -> bool:
    names = {one.name.partition("ffn_gate_inp.")[2] for one in routers}
    return "weight" in names and all(one.type in TYPES for one in routers)
