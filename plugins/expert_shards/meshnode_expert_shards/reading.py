"""Has a model read prompts and go on writing, so that its routers can be counted: what of each
prompt is read, and how much is written after it.

Routing depends on what is read, and on what a model writes itself. So each prompt has the same
share of the tokens, of which it may fill three quarters, and the model writes the rest. Several are
written at a time: where experts come from a disk, they then come once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meshnode_llama_cpp.context import Context
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.sampler import Sampler

from p2p_mesh.core.records import Sampling

LEAST = 32
"""Tokens of a prompt and what follows it."""
ROWS = 64
"""Of one call: each of them has logits of the whole vocabulary."""
SLOTS = 4
"""Prompts at a time."""

_READ = 3, 4
"""Of the share of a prompt, what may be read: the rest is written."""


@dataclass(frozen=True, slots=True)
class Portion:
    """What is made of a prompt."""

    read: tuple[int, ...]
    write: int


def portions(prompts: Sequence[Sequence[int]], *, tokens: int, context: int) -> list[Portion]:
    """As many tokens of each. Where there are too many prompts for that, some of them, spread over
    all.
    """
    known, most = [one for one in prompts if one], max(1, tokens // LEAST)
    if not known:
        return []
    chosen = known[:: -(-len(known) // most)]
    each = min(context, tokens // len(chosen))
    part, whole = _READ
    return [_portion(one, each, max(1, each * part // whole)) for one in chosen]


def _portion(prompt: Sequence[int], each: int, most: int) -> Portion:
    read = tuple(prompt[:most])
    return Portion(read, each - len(read))


class Reading:
    """Reads portions in a context with `SLOTS` sequences."""

    def __init__(
        self, model: Model, context: Context, *, seed: int, progress: Callable[[float], None]
    ) -> None:
        self._model, self._context = model, context
        self._seed, self._progress = seed, progress
        self._total = 1
        self.read = self.written = 0
        """Tokens that went through the model: of prompts, and of its own."""

    def run(self, wanted: Sequence[Portion]) -> None:
        """All of them. RuntimeError ends the process: nothing here is known to be whole."""
        self._total = sum(len(one.read) + one.write for one in wanted)
        done = 0
        for start in range(0, len(wanted), SLOTS):
            now = wanted[start : start + SLOTS]
            self._group(now, start, done)
            done += sum(len(one.read) + one.write for one in now)
            self._progress(done / self._total)

    def _group(self, portions: Sequence[Portion], first: int, done: int) -> None:
        self._context.clear()
        samplers = [
            Sampler(self._context, Sampling(seed=self._seed + first + slot), portion.read)
            for slot, portion in enumerate(portions)
        ]
        drawn: dict[int, int] = {}
        for slot, portion in enumerate(portions):
            row = self._read(slot, portion.read)
            drawn[slot] = samplers[slot].sample(row, 0)
            done += len(portion.read)
            self._progress(done / self._total)
        self._write(portions, samplers, drawn, done)
        for sampler in samplers:
            sampler.free()

    def _read(self, slot: int, tokens: Sequence[int]) -> int:
        """The row that is answered last."""
        rows = self._context.rows
        for start in range(0, len(tokens), ROWS):
            part = list(tokens[start : start + ROWS])
            rows.clear()
            rows.add(slot, start, part, outputs=len(part))
            self._context.decode()
            self.read += len(part)
        return (len(tokens) - 1) % ROWS

    def _write(
        self,
        portions: Sequence[Portion],
        samplers: Sequence[Sampler],
        drawn: dict[int, int],
        done: int,
    ) -> None:
        """A token of each in every call, until each has written its own or ended."""
        for step in range(max(one.write for one in portions)):
            drawn = {
                slot: token
                for slot, token in drawn.items()
                if step < portions[slot].write and not self._model.ends(token)
            }
            if not drawn:
                return
            self._context.rows.clear()
            placed = {
                slot: self._context.rows.add(
                    slot, len(portions[slot].read) + step, [token], outputs=1
                )
                for slot, token in drawn.items()
            }
            self._context.decode()
            self.written += len(drawn)
            drawn = {slot: samplers[slot].sample(row, step + 1) for slot, row in placed.items()}
            done += len(placed)
            self._progress(min(1.0, done / self._total))
