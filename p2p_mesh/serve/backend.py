"""What a backend is: the contract between a node and whatever runs a model. Part of API_VERSION.

A Backend says whether it could serve a model (`assess`, pure) and serves it (`open`). What it
opens is an Engine. Everything that an engine may raise towards its caller is a MeshError.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from p2p_mesh.core.experts.assignment import MIN_MASS
from p2p_mesh.core.names import Digest, ModelId, PeerId
from p2p_mesh.core.package import Manifest, PackageRef
from p2p_mesh.core.records import (
    Announcement,
    Choice,
    Delta,
    InferenceRequest,
    KvType,
    ModelFile,
    Query,
    Reply,
    Resources,
    Shard,
)
from p2p_mesh.core.stages import Topology

Capability = Literal["generate", "embed", "rerank", "forward", "vision", "audio"]


Wire = Literal["f32", "f16", "q8"]


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
    speculation: bool | None = None
    """Tokens may be guessed and verified; the answer is the same."""
    draft: ModelFile | None = None
    """A small model of the same vocabulary that guesses."""
    projector: ModelFile | None = None
    """What turns images or sounds into embeddings of this model (`mmproj`)."""
    split: bool = False
    """It is to be cut into stages, even where it fits whole."""
    topology: Topology | None = None
    """Which node computes which layers; None: as planned."""
    flash: bool = False
    """Its experts are to be read from the disk as they are wanted, even where it fits whole."""
    shards: bool = False
    """It is to be served by expert shards, even where it fits whole."""
    min_mass: float = MIN_MASS
    """The least share of the routing that an expert shard must keep."""
    most_round_trip: float = 0.08
    """Seconds between two nodes that hold stages, at most."""
    wire: Wire = "f32"
    """How activations travel between stages."""
    progress: Callable[[float], None] = field(default=lambda _: None, compare=False)
    """Called with 0.0 to 1.0 while the model loads."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What this node's user allows every engine here, whoever it is for; None: not said."""

    threads: int | None = None
    gpu_layers: int | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """A model fits: with this context and these slots it takes this much memory."""

    context: int
    slots: int
    memory_bytes: int
    tokens_per_second: float | None = None
    """Expected decode speed of one sequence; None where nothing was measured."""
    choice: Choice = "whole"
    """How it would be served. In `stages` and `shards` other nodes take part: `memory_bytes` is
    then what it takes here at least, and the backend leases what the plan adds.
    """
    mass: float | None = None
    """In `shards`: the share of the routing that goes to the experts here; None: not known yet."""
    room: int = 0
    """In `shards`: bytes of experts that there is room for here, within `memory_bytes`."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the expectation is made of, for `meshnode plan`: plain values by names."""

    @property
    def is_split(self) -> bool:
        """Whether other nodes take part."""
        return self.choice in ("stages", "shards")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A model cannot be served here: why, and what would help."""

    reason: str
    advice: str = ""
    is_final: bool = False
    """Of `expect`: it stays so whatever nodes come."""


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
    measures: Mapping[str, float] = field(default_factory=dict)
    """What the engine has measured of itself so far, by names in the manner of metrics, such as
    `expert_hit_rate`: shown by `meshnode status`, and as metrics.
    """
    shard: Shard | None = None
    """It answers with a part of a model's experts."""
    digest: Digest | None = None
    """Of the shard's own file, where that is not the file that was to be loaded."""


class Stream(Protocol):
    """An open stream to a peer, in the protocol that it was opened for."""

    async def send(self, frame: bytes) -> None: ...

    async def receive(self) -> bytes:
        """The next frame. Raises Unavailable where the stream has ended, RemoteError where the
        peer sent what is no frame.
        """
        ...

    def send_nowait(self, frame: bytes) -> bool:
        """Sends it if that needs no waiting, and else nothing of it. Raises Unavailable."""
        ...

    async def listen(self, hear: Callable[[bytes], None]) -> None:
        """Gives every frame from now on to `hear`, within the turn of the loop in which it came.
        Ends with what `receive` would raise, or with what `hear` raises.
        """
        ...


class Package(Protocol):
    """A model as a layer package, of which this node has all, some, or no parts yet. A plain GGUF
    file is one too: its parts are ranges of it.
    """

    @property
    def ref(self) -> PackageRef: ...

    @property
    def manifest(self) -> Manifest: ...

    @property
    def metadata(self) -> Path:
        """A GGUF file with all keys of the model, the tokenizer too; its tensors do not count."""
        ...

    async def fetch(
        self, artifacts: Sequence[str], progress: Callable[[float], None] = lambda _: None
    ) -> Sequence[Path]:
        """GGUF files of this machine that together hold the tensors of those artifacts (paths of
        the manifest): fetched from peers or the hub where they are missing, and checked. Raises
        Unavailable where nobody has one, ModelError where the disk may hold no more.
        """
        ...

    async def fetch_ranges(
        self,
        wanted: Mapping[str, Sequence[tuple[int, int]]],
        progress: Callable[[float], None] = lambda _: None,
    ) -> Mapping[str, Callable[[int, int], bytes]]:
        """Some ranges of artifacts, each an offset and a length in the artifact, fetched where they
        are missing, and checked. What is given for an artifact reads it, by offset and length; it
        is sure of those ranges only, blocks, and raises ModelError. Raises as `fetch` does.
        """
        ...

    def room(self, size: int) -> AbstractAsyncContextManager[None]:
        """Around the writing of a file of so many bytes that is composed of those parts. Raises
        ModelError where the disk may hold no more.
        """
        ...

    async def whole(self, progress: Callable[[float], None] = lambda _: None) -> Path:
        """The model in one file (the first, where it is split). Raises as `fetch` does."""
        ...


class Mesh(Protocol):
    """The narrow port through which a backend sees the mesh."""

    def me(self) -> PeerId:
        """This node. Raises Unavailable while it is not connected yet."""
        ...

    def name(self) -> str:
        """What others call this node."""
        ...

    def listens(self) -> str | None:
        """The address on which a backend may listen for peers itself, at a port of its own; empty:
        all of them; None: the user wants no other port than the node's.
        """
        ...

    def resources(self) -> Resources:
        """What this node has to work with now, less what is leased."""
        ...

    def limits(self) -> Limits:
        """What the user of this node has set for its engines."""
        ...

    def say(self, event: str, text: str) -> None:
        """An event of this node's log: a name such as `stage_held`, and a sentence for users."""
        ...

    def round_trip(self, peer: PeerId) -> float | None:
        """Seconds to a peer and back, as measured; None: not yet."""
        ...

    async def package(self, wanted: ModelFile | PackageRef) -> Package:
        """A model of this node, or one that a peer plans with. Raises ModelError for what is no
        package, Unavailable where nobody has its manifest.
        """
        ...

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


class Engine(Protocol):
    """An open model. `generate` is there where it declares it; `query` embeds and reranks where
    it declares that, and tokenizes where it has a vocabulary.
    """

    def describe(self) -> Description: ...

    def generate(
        self, request: InferenceRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """The answer to a request, as it grows; leaving the context cancels it, and its slot is
        free within one decode step. Iteration ends after the last delta, which has `usage`. The
        deltas may be offered (core/offers.py), which saves the node most of what one costs it.
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


@runtime_checkable
class Renewable(Protocol):
    """An engine that may end so as to be opened anew: that is no death of it."""

    @property
    def is_outdated(self) -> bool:
        """Whether it has ended for that, once it has ended: `wait_ended` says why."""
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


@runtime_checkable
class Expects(Protocol):
    """A backend that knows more of a model's fit than `assess` can: what depends on the mesh."""

    async def expect(self, load: Load, resources: Resources, mesh: Mesh) -> Fit | Refusal:
        """How the model would be served with these resources here, and with the mesh as it is now;
        loads nothing. A Refusal: it cannot begin now. Asked where `assess` gave a Fit that is not
        whole, and only where there is something to choose; the engine is opened with that Fit.
        Raises as `open` does.
        """
        ...


@runtime_checkable
class Attached(Protocol):
    """A backend that has to do with other nodes' models too."""

    def attach(self, mesh: Mesh) -> None:
        """Called once, when the node starts and before any model is opened: the time to `serve`
        protocols. May not wait.
        """
        ...
