"""From a request to the node that answers it: here, at a peer, or at the next peer."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)

from p2p_mesh.core.inventory import Inventory
from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.records import Delta, InferenceRequest, ServedModel
from p2p_mesh.core.routing import Candidate, rank
from p2p_mesh.errors import (
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
        cards: dict[ModelId, ModelCard] = {}
        for served in self._served():
            known = cards.get(served.id)
            cards[served.id] = ModelCard(
                id=served.id,
                created=self._known.setdefault(served.id, int(self._clock())),
                context=known.context if known else served.context,
                digest=known.digest if known else served.digest,
                capabilities=known.capabilities if known else served.capabilities,
                nodes=known.nodes + 1 if known else 1,
            )
        for hosted in self._hosted.values():
            model = hosted.load.model.id
            if hosted.state == "loading" and model not in cards:
                cards[model] = ModelCard(id=model, state="loading", nodes=0)
        return tuple(cards[model] for model in sorted(cards))

    def _served(self) -> Iterator[ServedModel]:
        for hosted in self._hosted.values():
            if hosted.state == "ready" and (served := hosted.served()) is not None:
                yield served
        for offer in self._inventory.offers():
            if offer.peer != self.me and not self._inventory.is_suspect(offer.peer):
                yield from offer.announcement.models

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
        for candidate in self._candidates(request)[:MAX_TRIES]:
            async with AsyncExitStack() as attempt:
                try:
                    started = await self._first(candidate, request, attempt)
                except MeshError as error:
                    self._failed(candidate, request, error)
                    failures.append(error)
                    if _is_settled(candidate, failures):
                        break
                    continue
                stack.push_async_exit(attempt.pop_all())
                return started
        raise _worst(failures)

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
        if candidate.peer is None:
            return self._hosted[request.model].generate(request)
        if self.ask is None:
            raise Unavailable("this node is not connected yet", retry_after=1.0)
        attempt.enter_context(self._counted(candidate.peer))
        return self.ask(candidate.peer, request)

    def _candidates(self, request: InferenceRequest) -> tuple[Candidate, ...]:
        found = list(self._elsewhere(request.model))
        here = self._hosted.get(request.model)
        if here is not None and (here.state == "ready" or not found):
            found.append(Candidate(None, slots=here.slots, active=here.active + here.queued))
        if not found:
            raise self._unknown(request.model)
        return rank(found, request.id)

    def _elsewhere(self, model: ModelId) -> Iterator[Candidate]:
        for offer in self._inventory.offers():
            for served in offer.announcement.models:
                if served.id == model and offer.peer != self.me:
                    yield Candidate(
                        offer.peer,
                        slots=served.slots,
                        active=self._active[offer.peer],
                        suspect=self._inventory.is_suspect(offer.peer),
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


def _is_settled(candidate: Candidate, failures: list[MeshError]) -> bool:
    """Whether the request itself is wrong, and so would be anywhere: this node says so, or two
    others do. One peer alone is not believed.
    """
    wrong = [error for error in failures if isinstance(error, RequestError)]
    return len(wrong) > (1 if candidate.peer is not None else 0)


def _worst(failures: list[MeshError]) -> MeshError:
    """What the client is told when no node answered: that the request is wrong, else to wait,
    else what broke last.
    """
    for kind in (RequestError, Overloaded | Loading, MeshError):
        for error in reversed(failures):
            if isinstance(error, kind):
                return error
    raise AssertionError("nobody was asked")


class _Started:
    """An answer whose first delta was taken to see that it comes."""

    def __init__(self, first: Delta, rest: AsyncIterator[Delta]) -> None:
        self._first: Delta | None = first
        self._rest = rest

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._rest)
