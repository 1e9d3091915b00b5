"""What a backend is: the contract between a node and whatever runs a model. Part of API_VERSION.

A Backend says whether it could serve a model (`assess`, pure) and serves it (`open`). What it
opens is an Engine. Everything that an engine may raise towards its caller is a MeshError.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from p2p_mesh.core.names import Digest, ModelId, PeerId
from p2p_mesh.core.records import (
    Announcement,
    Delta,
    InferenceRequest,
    KvType,
    ModelFile,
    Query,
    Reply,
    Resources,
)

Capability = Literal["generate", "embed", "rerank", "forward", "vision", "audio"]


@dataclass(frozen=True, slots=True)
class Load:
    """How a model is wanted. None means: as the backend thinks best."""

    model: ModelFile
    context: int | None = None
    """Tokens of one sequence, prompt and answer together."""
    slots: int | None = None
    """Sequences at a time."""
    threads: int | None = None
    memory_limit: int | None = None
    """Bytes that weights, KV cache and compute buffers may take together."""
    kv_type: KvType | None = None
    """How the KV cache is stored; None: f16."""
    gpu_layers: int | None = None
    """Layers that are computed by GPUs; None: as many as fit."""
    deterministic: bool = False
    """The text for a prompt and a seed depends on nothing else that the engine does."""
    speculation: bool = True
    """Tokens may be guessed and verified; the answer is the same."""
    draft: ModelFile | None = None
    """A small model of the same vocabulary that guesses."""
    projector: ModelFile | None = None
    """What turns images or sounds into embeddings of this model (`mmproj`)."""
    progress: Callable[[float], None] = field(default=lambda _: None, compare=False)
    """Called with 0.0 to 1.0 while the model loads."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A model fits: with this context and these slots it takes this much memory."""

    context: int
    slots: int
    memory_bytes: int
    tokens_per_second: float | None = None
    """Expected decode speed of one sequence; None where nothing was measured."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A model cannot be served here: why, and what would help."""

    reason: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Description:
    """An open engine: what it can do, and how much of it at a time."""

    capabilities: frozenset[Capability]
    context: int
    slots: int
    resumable: bool = True
    """False for an engine that gives no token ids: its answers cannot be continued elsewhere."""
    numerics: str = ""
    """Build, device, KV type, attention, batch limit: engines of equal strings compute alike.
    Whether an answer also is the same in company is the backend's to say in it.
    """
    device: str = "cpu"
    pid: int | None = None
    notes: tuple[str, ...] = ()
    """What a user should know of how the model was loaded; logged once."""


class Stream(Protocol):
    """An open stream to a peer, in the protocol that it was opened for."""

    async def send(self, frame: bytes) -> None: ...

    async def receive(self) -> bytes:
        """The next frame. Raises Unavailable where the stream has ended, RemoteError where the
        peer sent what is no frame.
        """
        ...


class Mesh(Protocol):
    """The narrow port through which a backend sees the mesh."""

    def peers(self) -> Sequence[tuple[PeerId, Announcement]]:
        """The members that announce themselves, without this node."""
        ...

    def open_stream(self, peer: PeerId, protocol: str) -> AbstractAsyncContextManager[Stream]:
        """A stream of the backend's own protocol to a member. Raises Unavailable."""
        ...

    def serve(self, protocol: str, answer: Callable[[Stream, PeerId], Awaitable[None]]) -> None:
        """From now on, `answer` has each stream of the protocol that a member opens to this node;
        the stream ends when it returns. Names of backends' protocols begin with `plugin/`.
        """
        ...

    def lease(self, memory_bytes: int) -> AbstractAsyncContextManager[None]:
        """Holds that much of this node's memory against other loads. Raises Unavailable."""
        ...

    async def fetch(self, digest: Digest) -> Path:
        """A local copy of the file with that SHA-256. Raises Unavailable if nobody has it."""
        ...


class Engine(Protocol):
    """An open model. `generate` is there where it declares it; `query` embeds and reranks where
    it declares that, and tokenizes where it has a vocabulary.
    """

    def describe(self) -> Description: ...

    def generate(
        self, request: InferenceRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """The answer to a request, as it grows; leaving the context cancels it, and its slot is
        free within one decode step. Iteration ends after the last delta, which has `usage`.
        Raises RequestError for a request that the model cannot take, EngineDied if it ended.

        The context holds no nursery and no cancel scope while it is open: it may be left in another
        task, or within other scopes, than it was entered in.
        """
        ...

    async def query(self, query: Query) -> Reply:
        """What is answered at once: vectors, scores, tokens, text. Raises RequestError for what
        the model cannot do or take, EngineDied if it ended.
        """
        ...

    async def wait_ended(self) -> str:
        """Returns when the engine has ended, by itself or by `close`, with the reason in words."""
        ...

    async def close(self) -> None:
        """Ends the engine; harmless when it has ended."""
        ...


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that a Source has; `open` gives the engine, as `Backend.open` does."""

    id: ModelId
    open: Callable[[], AbstractAsyncContextManager[Engine]] = field(compare=False)


class Source(Protocol):
    """Models that are no files of this node, such as those of a server that runs already."""

    @property
    def name(self) -> str:
        """Where the models are, such as `localhost:8080`; tells models of one name apart."""
        ...

    async def watch(
        self, offer: Callable[[Sequence[Offer]], None], note: Callable[[str], None]
    ) -> None:
        """Tells, until cancelled, which models there are: all of them, whenever that changes.
        A model that is offered is served until it is no longer offered; one whose engine ends is
        opened again, after a pause. Raises nothing: what is out of reach is tried again, and
        `note` is told, in words for a user, when that begins.
        """
        ...


class Backend(Protocol):
    """A way to run models."""

    @property
    def name(self) -> str: ...

    def assess(self, load: Load, resources: Resources) -> Fit | Refusal:
        """Whether and how the model could be served with these resources. Pure."""
        ...

    def open(self, load: Load, mesh: Mesh) -> AbstractAsyncContextManager[Engine]:
        """Loads the model; the engine lives as long as the context. `load` has the context and
        slots of the Fit that was chosen, whose memory the caller has leased.
        Raises ModelError if the model is at fault, EngineDied if the engine died while loading.
        """
        ...
