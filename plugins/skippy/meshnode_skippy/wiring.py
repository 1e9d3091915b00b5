"""What a running stage must know of its recipe: what is fed, what leaves, and at which nodes of the
graph. It goes to the engine process with the file, which holds the rest.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from p2p_mesh.core.families.recipe import Entry, Recipe
from p2p_mesh.core.records import Record

_Block = Annotated[int, Meta(ge=0, le=65_535)]


class Wiring(Record, frozen=True, kw_only=True):
    """The fields are those of the same names in Recipe."""

    entry: Entry
    blocks: Annotated[int, Meta(ge=1, le=65_536)]
    """How many blocks its file has."""
    entry_block: _Block | None = None
    exit_block: _Block | None = None
    stops: bool = False
    scale: float = 1.0
    needs_tokens: bool = False
    has_vocabulary: bool = True

    @property
    def is_last(self) -> bool:
        return self.exit_block is None


def wiring(recipe: Recipe) -> Wiring:
    return Wiring(
        entry=recipe.entry,
        blocks=len(recipe.blocks),
        entry_block=recipe.entry_block,
        exit_block=recipe.exit_block,
        stops=recipe.stops,
        scale=recipe.scale,
        needs_tokens=recipe.needs_tokens,
        has_vocabulary=recipe.has_vocabulary,
    )
