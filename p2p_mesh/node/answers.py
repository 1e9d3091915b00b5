"""From a question to the node that answers it: here, at a peer, or at the next peer."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from functools import partial
from itertools import count
from typing import TypeVar

import msgspec
import trio

from p2p_mesh.core.inventory import Inventory
from p2p_mesh.core.names import ModelId, PeerId, RequestId
from p2p_mesh.core.records import Delta, InferenceRequest, Query, Reply
from p2p_mesh.core.routing import (
    Candidate,
    Course,
    Serving,
    answers,
    catalogue,
    needs,
    promising,
    rank,
)
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
Look = Callable[[PeerId, Query], Awaitable[Reply]]

T = TypeVar("T")

END_PATIENCE = 5.0
"""Seconds that a node has to end an answer of which all has come."""

MAX_TRIES = 4
"""Nodes that one question is sent to at most, before the first delta or the reply."""

_LACKS = {
    "generate": "writes no text",
    "embed": "makes no embeddings",
    "rerank": "ranks no documents",
    "vision": "takes no images",
    "audio": "takes no sounds",
}
_SENSES = frozenset({"vision", "audio"})


class Answers:
    """What the front asks. `me`, `ask` and `look` are None until the network is up."""

    def __init__(
        self,
        hosted: Mapping[str, Hosted],
        inventory: Inventory,
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        self.me: PeerId | None = None
        self.ask: Ask | None = None
        self.look: Look | None = None
        self.is_joining = True
        """Whether the mesh may still turn out to have models that are not known yet."""
        self._hosted = hosted
        self._inventory = inventory
        self._journal = journal
        self._clock = clock
        self._known: dict[ModelId, int] = {}
        self._active: Counter[PeerId] = Counter()
        self._queries = count()

    def models(self) -> tuple[ModelCard, ...]:
        """The models of the whole mesh, by name: ready ones, and those that load here."""
        cards = {name: self._card(name, group) for name, group in self._catalogue().items()}
        for hosted in self._hosted.values():
            model = hosted.id
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
            yield await self._try(request, request.id, partial(self._begin, request, stack))

    async def query(self, query: Query) -> Reply:
        """The reply of the best node that gives one."""
        turn = RequestId(f"query-{next(self._queries)}")
        return await self._try(query, turn, partial(self._reply, query))

    async def _try(
        self,
        question: InferenceRequest | Query,
        turn: RequestId,
        attempt: Callable[[Candidate], Awaitable[T]],
    ) -> T:
        failures: list[MeshError] = []
        left = self._candidates(question, turn)
        while left and len(failures) < MAX_TRIES:
            candidate, *left = left
            try:
                got = await attempt(candidate)
            except MeshError as error:
                self._failed(candidate, question.model, error)
                failures.append(error)
                left = promising(left, candidate, failures)
            else:
                if candidate.peer is not None:
                    self._inventory.trust(candidate.peer)
                return got
        raise _worst(failures, question.model)

    async def _begin(
        self, request: InferenceRequest, stack: AsyncExitStack, candidate: Candidate
    ) -> AsyncIterator[Delta]:
        async with AsyncExitStack() as attempt:
            deltas = await attempt.enter_async_context(self._open(candidate, request, attempt))
            first = await anext(deltas, None)
            if first is None:
                raise RemoteError("an answer that ended before it began")
            started = _Started(first, deltas, Course(request))
            stack.push_async_exit(attempt.pop_all())
            return started

    def _open(
        self, candidate: Candidate, request: InferenceRequest, attempt: AsyncExitStack
    ) -> Answer:
        request = msgspec.structs.replace(request, model=candidate.model)
        if candidate.peer is None:
            return self._here(candidate.model).generate(request)
        if self.ask is None:
            raise Unavailable("this node is not connected yet", retry_after=1.0)
        attempt.enter_context(self._counted(candidate.peer))
        return self.ask(candidate.peer, request)

    async def _reply(self, query: Query, candidate: Candidate) -> Reply:
        query = msgspec.structs.replace(query, model=candidate.model)
        if candidate.peer is None:
            reply = await self._here(candidate.model).query(query)
        elif self.look is None:
            raise Unavailable("this node is not connected yet", retry_after=1.0)
        else:
            with self._counted(candidate.peer):
                reply = await self.look(candidate.peer, query)
        if not answers(reply, query):
            raise RemoteError("a reply to another query")
        return reply

    def _here(self, model: ModelId) -> Hosted:
        hosted = self._hosted.get(model)
        if hosted is None:  # its server offers it no longer
            raise self._unknown(model)
        return hosted

    def _candidates(
        self, question: InferenceRequest | Query, turn: RequestId
    ) -> Sequence[Candidate]:
        model, needed = question.model, needs(question)
        servings = self._catalogue(suspects=True).get(model, ())
        able = [one for one in servings if needed <= {*one.model.capabilities}]
        if able:
            return rank(map(self._candidate, able), turn)
        if model in self._hosted and all(one.peer is not None for one in servings):
            return (Candidate(None, model, slots=0),)  # it loads, or failed: it says so itself
        if servings:
            raise self._unable(model, min((needed - {*one.model.capabilities} for one in servings),
                                          key=len))  # fmt: skip
        raise self._unknown(model)

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

    def _unable(self, model: ModelId, lacks: frozenset[str]) -> RequestError:
        lack = min(lacks)
        others = [card.id for card in self.models() if lack in card.capabilities]
        advice = f"models that do: {', '.join(others)}" if others else "no model here does"
        param = "messages" if lack in _SENSES else "model"
        return RequestError(f"{model} {_LACKS[lack]}; {advice}", param=param)

    @contextmanager
    def _counted(self, peer: PeerId) -> Iterator[None]:
        self._active[peer] += 1
        try:
            yield
        finally:
            self._active[peer] -= 1

    def _failed(self, candidate: Candidate, model: ModelId, error: MeshError) -> None:
        if candidate.peer is None or isinstance(error, RequestError):
            return  # a client's mistake is told to the client
        if not isinstance(error, Overloaded | Loading | UnknownModel):
            self._inventory.suspect(candidate.peer)
        self._journal.warning(
            "answer_failed", f"{candidate.peer} did not answer for {model}: {error}",
            peer=candidate.peer, model=model, reason=str(error),
        )  # fmt: skip


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

    def __init__(self, first: Delta, rest: AsyncIterator[Delta], course: Course) -> None:
        course.check(first)
        self._first: Delta | None = first
        self._rest = rest
        self._course = course
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
            self._course.check(delta)
        self._is_over = delta.usage is not None
        return delta
