"""What an engine process serves: a model that writes, or one that embeds and ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from meshnode_llama_cpp import frames
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.decoder import Decoder
from meshnode_llama_cpp.draft import open_draft
from meshnode_llama_cpp.drawing import Drawing
from meshnode_llama_cpp.embedder import COMPANY, GPU_COMPANY, Embedder, role_of
from meshnode_llama_cpp.grammar import Grammars
from meshnode_llama_cpp.library import Device, numerics
from meshnode_llama_cpp.memory import PLAIN_ROWS
from meshnode_llama_cpp.model import Model, gpu_layers_that_fit
from meshnode_llama_cpp.prompt import Prompts
from meshnode_llama_cpp.scheduler import EXACT, Limits
from meshnode_llama_cpp.seats import Seats
from meshnode_llama_cpp.steps import Here
from meshnode_llama_cpp.writing import Writing
from p2p_mesh.core.records import (
    DetokenizeQuery,
    EmbedQuery,
    InferenceRequest,
    Query,
    Reply,
    RerankQuery,
    TokenizeQuery,
)
from p2p_mesh.errors import RequestError
from p2p_mesh.serve.backend import Capability

if TYPE_CHECKING:
    from meshnode_llama_cpp.media import Projector

Outcome = frames.Answer | frames.Rejected
Progress = Callable[[float], None]


class Asked(Protocol):
    """What answers requests and queries, in its process."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        ...

    @property
    def hold(self) -> float:
        """Seconds for which what the last step came to is held back."""
        ...

    def ask(self, number: int, request: InferenceRequest) -> None:
        """Begins an answer. Raises RequestError."""
        ...

    def look(self, query: Query, cancelled: Callable[[], bool]) -> Reply:
        """Raises RequestError, also once `cancelled` says so."""
        ...

    def cancel(self, number: int) -> None: ...

    def step(self) -> Sequence[Outcome]:
        """Computes a little, if there is anything."""
        ...


class Served(Asked, Protocol):
    """A model that is loaded."""

    capabilities: tuple[Capability, ...]
    notes: tuple[str, ...]

    def numerics(self, device: str) -> str: ...


def open_model(
    command: frames.Open,
    devices: Sequence[Device],
    progress: Progress,
    writer: Callable[[Model, frames.Open, int], Served] | None = None,
) -> Served:
    """Loads what the command names. `writer`: what a model that writes is, where it is not a
    `Writer`. Raises ModelError.
    """
    layers = _gpu_layers(command, devices)
    model = Model(command.path, name=command.name, progress=progress, gpu_layers=layers)
    if role_of(model) == "generate":
        return (writer or Writer)(model, command, layers)
    return Reader(model, command, layers)


def _gpu_layers(command: frames.Open, devices: Sequence[Device]) -> int:
    if not devices or command.gpu_layers is not None:
        return command.gpu_layers or 0
    beside = sum(os.stat(path).st_size for path in (command.draft, command.projector) if path)
    return gpu_layers_that_fit(
        command.path,
        cells=command.context * command.slots,
        kv_type=command.kv_type,
        free=[max(0, device.free - beside // len(devices)) for device in devices],
    )


class Writer(Writing):
    """A model that writes, all of it in this process."""

    def __init__(
        self,
        model: Model,
        command: frames.Open,
        gpu_layers: int,
        *,
        rows: int = Limits().rows,
        make: Callable[[Plan], Context] | None = None,
    ) -> None:
        """`rows`: of one call, at most. `make`: the context, where it is of another kind."""
        model.check_writes()
        self._command = command
        flash = command.flash or gpu_layers != 0
        self._limits = _limits(rows, command, flash=flash)
        projector = _projector(model, command, gpu_layers)
        prompts = _prompts(model, command, projector)
        plan = Plan(
            command.context,
            command.slots,
            command.threads,
            self._limits.rows,
            command.kv_type,
            command.deterministic,
            flash,
        )
        context = make(plan) if make is not None else Context(model, plan)
        grammars = Grammars(model)
        grammars.prepare()
        decoder = Decoder(
            model,
            Here(context, Drawing(context, model, grammars)),
            seats=Seats(context, command.slots),
            grammars=grammars,
            limits=self._limits,
            context_length=command.context,
            speculates=command.speculation,
            draft=(
                None
                if command.draft is None
                else open_draft(command.draft, model, plan, offload=gpu_layers != 0)
            ),
            projector=projector,
        )
        super().__init__(model, prompts, decoder, context_length=command.context)
        self.capabilities = _senses(projector)

    def numerics(self, device: str) -> str:
        command = self._command
        return numerics(
            device,
            self._limits.rows,
            kv_type=command.kv_type,
            exact=command.deterministic,
            projector=Path(command.projector) if command.projector else None,
        )


def _limits(rows: int, command: frames.Open, *, flash: bool) -> Limits:
    if command.deterministic:
        return Limits(min(rows, EXACT.rows))
    return Limits(rows if flash else min(rows, PLAIN_ROWS))


class Reader:
    """A model that embeds or ranks."""

    def __init__(self, model: Model, command: frames.Open, gpu_layers: int) -> None:
        self._name = command.name
        company = COMPANY
        if gpu_layers:  # where nothing is bit-equal beside others, the more the better
            company = 1 if command.deterministic else GPU_COMPANY
        self._embedder = Embedder(
            model, context=command.context, threads=command.threads, company=company
        )
        self._prompts = Prompts(model, command.context)
        ranks = "rerank" in self._embedder.capabilities
        self.capabilities: tuple[Capability, ...] = ("rerank",) if ranks else ("embed",)
        self.notes: tuple[str, ...] = ()
        self.idle, self.hold = True, 0.0

    def ask(self, number: int, request: InferenceRequest) -> None:
        raise RequestError(f"{self._name} does not write: it {_does(self)}", param="model")

    def look(self, query: Query, cancelled: Callable[[], bool]) -> Reply:
        match query:
            case TokenizeQuery():
                return self._prompts.tokens(query)
            case DetokenizeQuery():
                return self._prompts.text(query)
            case EmbedQuery() | RerankQuery():
                return self._embedder.answer(query, cancelled)

    def cancel(self, number: int) -> None:
        """Nothing runs between two commands."""

    def step(self) -> Sequence[Outcome]:
        return []

    def numerics(self, device: str) -> str:
        return numerics(device, 0, kv_type="none", exact=True)


def _does(reader: Reader) -> str:
    return " and ".join({"embed": "makes vectors", "rerank": "ranks documents"}[one]
                        for one in reader.capabilities)  # fmt: skip


def _projector(model: Model, command: frames.Open, gpu_layers: int) -> Projector | None:
    if command.projector is None:
        return None
    from meshnode_llama_cpp.media import Projector  # maps libmtmd, which few models need

    return Projector(command.projector, model, threads=command.threads, offload=gpu_layers != 0)


def _prompts(model: Model, command: frames.Open, projector: Projector | None) -> Prompts:
    if projector is None:
        return Prompts(model, command.context)
    return Prompts(model, command.context, read_media=projector.read, marker=projector.marker)


def _senses(projector: Projector | None) -> tuple[Capability, ...]:
    found: list[Capability] = ["generate"]
    if projector is not None and projector.vision:
        found.append("vision")
    if projector is not None and projector.audio:
        found.append("audio")
    return tuple(found)
