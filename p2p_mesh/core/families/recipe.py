"""What a stage is: which layers it computes, what its file holds, what goes in, what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from p2p_mesh.core.gguf import Value

Entry = Literal["tokens", "rows", "inject"]
"""What is fed. `tokens`: ids, in a first stage. `rows`: activations (or, in a first stage, the rows
of the embedding table), as embeddings. `inject`: token ids, and the activation takes the place of
what a node of the graph has computed.
"""

Change = Literal["", "zeros"]
"""What becomes of a tensor's data: nothing, or all zeros."""

VOCABULARY = 0
"""In a shape: the size of the vocabulary of the stage's file."""


@dataclass(frozen=True, slots=True)
class Renamed:
    """A tensor of a stage's file that is not simply the model's own. `source` may name a tensor
    of the model's (`blk.N.` with N of the model).
    """

    name: str
    source: str
    change: Change = ""
    factor: float = 1.0
    """Its numbers are multiplied by it (F32 tensors alone)."""
    shape: tuple[int, ...] = ()
    """Of a tensor of zeros that has no source (innermost first, as GGUF says it; `VOCABULARY`: as
    many as its file has tokens): the graph wants it, and nothing that leaves depends on it.
    """
    otherwise: str = ""
    """What is taken where no source holds `source`."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Layers `start` to `end` (half open) of a model of `total` layers, as a stage."""

    start: int
    end: int
    total: int
    blocks: tuple[int, ...]
    """The blocks of its file, by the model's numbers, in order: the stage's layers, and fillers
    before or behind them which the family's graph needs and whose results are not used.
    """
    entry: Entry
    entry_block: int | None = None
    """For `inject`: the block of its file whose output is replaced; None: what block 0 is fed."""
    exit_block: int | None = None
    """The block of its file whose output leaves; None: the last stage, whose logits count."""
    stops: bool = False
    """What follows the exit block in the graph need not be computed."""
    scale: float = 1.0
    """Rows are multiplied by it before they are fed: the graph undoes it."""
    needs_tokens: bool = False
    """Token ids must be right in this stage (with `inject`); else they do not matter."""
    has_vocabulary: bool = True
    """Without one, its file has the tokenizer `none` and a vocabulary of one."""
    metadata: Mapping[str, Value | None] = field(default_factory=dict)
    """Keys that differ from the model's; None: left out."""
    shared: tuple[str, ...] = ()
    """The tensors that belong to no block, which it takes as they are, where a source has them;
    `*`: all there are.
    """
    renamed: tuple[Renamed, ...] = ()
    """All tensors that are taken in another way, by their names in its file."""
    left_out: tuple[str, ...] = ()
    """Tensors that it does not take, by their names in its file."""

    @property
    def is_first(self) -> bool:
        return self.start == 0

    @property
    def is_last(self) -> bool:
        return self.end == self.total


@dataclass(frozen=True, slots=True)
class Needs:
    """The parts of a model's package that a stage is composed of, beside its metadata."""

    blocks: tuple[int, ...]
    """The layers whose tensors it takes; fillers' among them."""
    embeddings: bool
    output: bool
