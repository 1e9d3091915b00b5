"""The first stage: the prompts, the queue and the texts of a model whose layers lie on several
nodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from meshnode_llama_cpp.context import OUTPUTS, Plan
from meshnode_llama_cpp.decoder import Decoder
from meshnode_llama_cpp.draft import open_draft
from meshnode_llama_cpp.grammar import Grammars
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.prefixes import Rules, rules_of
from meshnode_llama_cpp.prompt import Prompts
from meshnode_llama_cpp.scheduler import EXACT, Limits
from meshnode_llama_cpp.seats import Seats
from meshnode_llama_cpp.writing import Writing

from meshnode_skippy.frames import OpenStage
from meshnode_skippy.pipeline import Ring
from meshnode_skippy.wire import Batch, Result

ROWS = 64
"""Of one batch: small ones keep all stages at work on a prompt, and cost little more a row."""


def limits(command: OpenStage) -> Limits:
    return EXACT if command.deterministic else Limits(rows=ROWS)


def plan(command: OpenStage) -> Plan:
    """What the context of any stage is made for."""
    return Plan(
        command.context,
        command.slots,
        command.threads,
        limits(command).rows,
        command.kv_type,
        command.deterministic,
    )


class Coordinator(Writing):
    """Answers requests through the ring. `compute` does the first stage's part of a batch, and
    sends it on; `state_size`: bytes that it would keep of a slot.
    """

    def __init__(
        self,
        command: OpenStage,
        compute: Callable[[Batch], None],
        *,
        state_size: Callable[[int], int],
        gpu_layers: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        model = Model(
            command.metadata, name=command.name, progress=lambda _: None, part="vocabulary"
        )
        model.check_writes()
        grammars = Grammars(model)
        grammars.prepare()
        self._ring = Ring(
            compute,
            stages=command.stages,
            rules=rules(model, command),
            rows=limits(command).rows,
            outputs=min(limits(command).rows, max(command.slots, OUTPUTS)),
            vocabulary=model.token_count,
            state_size=lambda slot: state_size(slot) * command.total // command.layers,
            clock=clock,
        )
        decoder = Decoder(
            model,
            self._ring,
            seats=Seats(self._ring.memory, command.slots),
            grammars=grammars,
            limits=limits(command),
            context_length=command.context,
            speculates=command.speculation,
            draft=(
                None
                if command.draft is None
                else open_draft(command.draft, model, plan(command), offload=gpu_layers != 0)
            ),
        )
        prompts = Prompts(model, command.context)
        super().__init__(model, prompts, decoder, context_length=command.context)

    def restart(self, epoch: int) -> None:
        """The ring is up: what lives is read again, from the beginning."""
        self._ring.restart(epoch)
        self._decoder.restart()

    def hear(self, result: Result) -> None:
        """Raises RemoteError for one that nobody asked for: nothing goes out before a restart."""
        self._ring.hear(result)

    def give_up(self) -> bool:
        """Whether a batch was lost on its way; nothing goes out before a restart then."""
        if not self._ring.is_stuck():
            return False
        self._ring.lose()
        return True

    @property
    def hold(self) -> float:
        """Nothing is: batches of several groups come around in turns, and none is the next step of
        the one before.
        """
        return 0.0

    @property
    def is_flying(self) -> bool:
        return self._ring.is_flying

    @property
    def sent(self) -> int:
        """Batches that were made."""
        return self._ring.number


def rules(model: Model, command: OpenStage) -> Rules:
    """What the memories of all stages allow together."""
    window = 0 if command.deterministic else command.window
    return rules_of(
        is_recurrent=model.is_recurrent, window=window, rows=ROWS, context=command.context
    )
