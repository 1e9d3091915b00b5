"""From a request to the node that answers it: here, at a peer, or at the next peer."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)

import msgspec
import trio

from p2p_mesh.core.inventory import Inventory
from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.records import Delta, InferenceRequest
from p2p_mesh.core.routing import Candidate, Serving, catalogue, rank
from p2p_mesh.errors import (
    EngineDied,
    Loading,
    MeshError,
    Overloaded,
    RemoteError,
    RequestError,
    Unavailable,
    UnknownModel,
)
from p2p_mesh.front.app import ModelCard
from p2p_mesh.journal import Journal
from p2p_mesh.serve.supervisor import Hosted

Answer = AbstractAsyncContextManager[AsyncIterator[Delta]]
Ask = Callable[[PeerId, InferenceRequest], Answer]

END_PATIENCE = 5.0
"""Seconds that a node has to end an answer of which all has come."""

MAX_TRIES = 4
"""Nodes that one request is sent to at most, before its first delta."""


class Answers:
    """What the front asks. `me` and `ask` are None until the network is up."""

    def __init__(
        self,
        hosted: Mapping[str, Hosted],
        inventory: Inventory,
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        self.me: PeerId | None = None
        self.ask: Ask | None = None
        self.is_joining = True
        """Whether the mesh may still turn out to have models that are not known yet."""
        self._hosted = hosted
        self._inventory = inventory
        self._journal = journal
        self._clock = clock
        self._known: dict[ModelId, int] = {}
        self._active: Counter[PeerId] = Counter()

    def models(self) -> tuple[ModelCard, ...]:
        """The models of the whole mesh, by name: ready ones, and those that load here."""
        cards = {name: self._card(name, group) for name, group in self._catalogue().items()}
        for hosted in self._hosted.values():
            model = hosted.load.model.id
            if hosted.state == "loading" and model not in cards:
                cards[model] = ModelCard(id=model, state="loading", nodes=0)
        self._known = {name: card.created for name, card in cards.items()}
        return tuple(cards[name] for name in sorted(cards))

    def _card(self, name: ModelId, group: Sequence[Serving]) -> ModelCard:
        model = group[0].model
        return ModelCard(
            id=name,
            created=self._known.get(name, int(self._clock())),
            context=max(one.model.context for one in group),
            digest=next((one.model.digest for one in group if one.model.digest), None),
            capabilities=model.capabilities,
            nodes=len(group),
        )

    def _catalogue(self, *, suspects: bool = False) -> Mapping[ModelId, tuple[Serving, ...]]:
        """Who serves what now: this node, and the others that are not suspect."""
        servings = [
            Serving(None, served)
            for hosted in self._hosted.values()
            if hosted.state == "ready" and (served := hosted.served()) is not None
        ]
        for offer in self._inventory.offers():
            if offer.peer != self.me and (suspects or not self._inventory.is_suspect(offer.peer)):
                servings += [Serving(offer.peer, model) for model in offer.announcement.models]
        return catalogue(servings)

    @asynccontextmanager
    async def answer(self, request: InferenceRequest) -> AsyncIterator[AsyncIterator[Delta]]:
        """The answer of the best node that gives one. A node that fails before its first delta
        is passed over for the next; after it, an error is the answer's own.
        """
        async with AsyncExitStack() as stack:
            yield await self._begin(request, stack)

    async def _begin(
        self, request: InferenceRequest, stack: AsyncExitStack
    ) -> AsyncIterator[Delta]:
        failures: list[MeshError] = []
        left = list(self._candidates(request))
        for _ in range(MAX_TRIES):
            if not left:
                break
            candidate = left.pop(0)
            async with AsyncExitStack() as attempt:
                try:
                    started = await self._first(candidate, request, attempt)
                except MeshError as error:
                    self._failed(candidate, request, error)
                    failures.append(error)
                    if _is_wrong(candidate, failures):
                        # Too long, perhaps: only a node with more room could think otherwise.
                        left = [one for one in left if one.context > candidate.context]
                    continue
                stack.push_async_exit(attempt.pop_all())
                return started
        raise _worst(failures, request.model)

    async def _first(
        self, candidate: Candidate, request: InferenceRequest, attempt: AsyncExitStack
    ) -> AsyncIterator[Delta]:
        deltas = await attempt.enter_async_context(self._open(candidate, request, attempt))
        try:
            first = await anext(deltas)
        except StopAsyncIteration:
            raise RemoteError("an answer that ended before it began") from None
        if candidate.peer is not None:
            self._inventory.trust(candidate.peer)
        return _Started(first, deltas)

    def _open(
        self, candidate: Candidate, request: InferenceRequest, attempt: AsyncExitStack
    ) -> Answer:
        request = msgspec.structs.replace(request, model=candidate.model)
        if candidate.peer is None:
            return self._hosted[candidate.model].generate(request)
        if self.ask is None:
            raise Unavailable("this node is not connected yet", retry_after=1.0)
        attempt.enter_context(self._counted(candidate.peer))
        return self.ask(candidate.peer, request)

    def _candidates(self, request: InferenceRequest) -> tuple[Candidate, ...]:
        servings = self._catalogue(suspects=True).get(request.model, ())
        found = [self._candidate(one) for one in servings]
        if not found and request.model in self._hosted:  # it loads, or failed: it says so itself
            found = [Candidate(None, request.model, slots=0)]
        if not found:
            raise self._unknown(request.model)
        return rank(found, request.id)

    def _candidate(self, serving: Serving) -> Candidate:
        peer, model = serving.peer, serving.model
        if peer is None:
            here = self._hosted[model.id]
            active = here.active + here.queued
        else:
            active = self._active[peer]
        return Candidate(
            peer,
            model.id,
            slots=model.slots,
            context=model.context,
            active=active,
            suspect=peer is not None and self._inventory.is_suspect(peer),
        )

    def _unknown(self, model: ModelId) -> MeshError:
        if self.is_joining:
            return Unavailable("this node is still joining its mesh", retry_after=1.0)
        names = ", ".join(card.id for card in self.models()) or "none yet"
        return UnknownModel(f"there is no model {model!r} here; there are: {names}", param="model")

    @contextmanager
    def _counted(self, peer: PeerId) -> Iterator[None]:
        self._active[peer] += 1
        try:
            yield
        finally:
            self._active[peer] -= 1

    def _failed(self, candidate: Candidate, request: InferenceRequest, error: MeshError) -> None:
        if candidate.peer is None:
            return
        if not isinstance(error, Overloaded | Loading | UnknownModel | RequestError):
            self._inventory.suspect(candidate.peer)
        self._journal.warning(
            "answer_failed", f"{candidate.peer} did not answer for {request.model}: {error}",
            peer=candidate.peer, model=request.model, reason=str(error),
        )  # fmt: skip


def _is_wrong(candidate: Candidate, failures: list[MeshError]) -> bool:
    """Whether the request itself is wrong: this node says so, or two others do. One peer alone is
    not believed.
    """
    wrong = [error for error in failures if isinstance(error, RequestError)]
    return len(wrong) > (1 if candidate.peer is not None else 0)


def _worst(failures: list[MeshError], model: ModelId) -> MeshError:
    """What the client is told when no node answered: that the request is wrong, else to wait,
    else that nobody could, and why the last one did not.
    """
    for kind in (RequestError, Overloaded | Loading | EngineDied):
        for error in reversed(failures):
            if isinstance(error, kind):
                return error
    last = failures[-1]
    if type(last) is Unavailable:
        return Unavailable(f"no node answers for {model} now: {last}", retry_after=1.0)
    return last


class _Started:
    """An answer whose first delta was taken to see that it comes. It ends with the delta that has
    the usage, whatever a node may send after that.
    """

    def __init__(self, first: Delta, rest: AsyncIterator[Delta]) -> None:
        self._first: Delta | None = first
        self._rest = rest
        self._is_over = False

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        if self._is_over:
            with trio.move_on_after(END_PATIENCE):
                await anext(self._rest)  # which ends it; what comes instead is dropped
            raise StopAsyncIteration
        delta, self._first = self._first, None
        if delta is None:
            delta = await anext(self._rest)
        if delta.choice != 0:
            raise RemoteError("an answer with a choice that was not asked for")
        self._is_over = delta.usage is not None
        return delta
