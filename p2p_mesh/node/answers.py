"""From a question to the node that answers it: here, at a peer, or at the next peer; and on to
another where an answer breaks (attempts.py). Who could, candidates.py knows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TypeVar

import msgspec
import trio

from p2p_mesh.core.course import answers
from p2p_mesh.core.estimates import Firsts
from p2p_mesh.core.inventory import Inventory
from p2p_mesh.core.names import ModelId, PeerId, RequestId
from p2p_mesh.core.records import Delta, InferenceRequest, Query, Reply
from p2p_mesh.core.routing import Candidate, goes_on_exactly, promising
from p2p_mesh.core.share import Share
from p2p_mesh.errors import (
    BrokenOff,
    EngineDied,
    HandedOver,
    Loading,
    MeshError,
    Overloaded,
    RemoteError,
    RequestError,
    Unavailable,
)
from p2p_mesh.front.app import ModelCard
from p2p_mesh.journal import Journal
from p2p_mesh.node.attempts import Attempt, Broken, Lasting
from p2p_mesh.node.candidates import Candidates
from p2p_mesh.node.race import Race
from p2p_mesh.serve.supervisor import Hosted

Answer = AbstractAsyncContextManager[AsyncIterator[Delta]]
Ask = Callable[[PeerId, InferenceRequest], Answer]
Look = Callable[[PeerId, Query], Awaitable[Reply]]

T = TypeVar("T")

MAX_TRIES = 4
"""Nodes that may fail one question, before the first delta or the reply,"""
MAX_BUSY = 16
"""and nodes that may say that they are busy."""

PATIENCE = 10.0
"""Seconds that a broken answer waits for a node that could go on with it,"""
LONGER = 60.0
"""and that it waits where one could, and is busy or loading."""
AGAIN, SELDOM = 0.2, 2.0
"""Seconds until it looks again, at first and at last."""

STREAMS = 64
"""Requests of this node's clients to one peer at a time: as many as net/inference.py lets through,
but for answers that broke elsewhere, which always find room there.
"""

_BUSY = (Overloaded, Loading)
_HARMLESS = (*_BUSY, EngineDied)
"""Errors of which a node tells itself: it lives, and its other models too. A node that announces
a model and does not know it is no better than one that is gone, until it announces again.
"""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, as far as can be told, and in which conversation."""

    client: str
    conversation: str = ""


class Answers:
    """What the front asks. `ask` and `look` are None until the network is up."""

    def __init__(
        self,
        hosted: Mapping[str, Hosted],
        inventory: Inventory,
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        self.candidates = Candidates(hosted, inventory, clock)
        self.ask: Ask | None = None
        self.look: Look | None = None
        self.counted: Callable[[ModelId], None] = lambda _: None
        """Told of the model of every question."""
        self._hosted = hosted
        self._inventory = inventory
        self._journal = journal
        self._firsts = Firsts()
        self._shares: dict[PeerId, Share] = {}
        self._queries = count()

    def models(self) -> tuple[ModelCard, ...]:
        return self.candidates.models()

    @asynccontextmanager
    async def answer(
        self, request: InferenceRequest, client: str = "", conversation: str = ""
    ) -> AsyncIterator[AsyncIterator[Delta]]:
        """The answer of the best node that gives one. A node that fails before its first delta
        is passed over for the next; after it, another goes on. Raises MeshErrors.
        """
        self.counted(request.model)
        asker = Asker(client, conversation)
        begin = partial(self._soonest, request, asker)
        attempt = await self._try(request, request.id, begin, conversation)
        self.candidates.settle(request, conversation, attempt.candidate)
        lasting = Lasting(
            request, attempt, partial(self._go_on, asker), partial(self._learn, request)
        )
        try:
            yield lasting
        finally:
            await lasting.close()

    async def query(self, query: Query, client: str = "") -> Reply:
        """The reply of the best node that gives one."""
        self.counted(query.model)
        turn = RequestId(f"query-{next(self._queries)}")
        return await self._try(query, turn, partial(self._reply, query, client))

    async def _try(
        self,
        question: InferenceRequest | Query,
        turn: RequestId,
        attempt: Callable[[Candidate, list[Candidate]], Awaitable[T]],
        conversation: str = "",
    ) -> T:
        """What the first of the candidates gives that gives anything."""
        failures: list[MeshError] = []
        left = self.candidates.of(question, turn, conversation)
        while left and _may_go_on(failures):
            candidate, *left = left
            try:
                return await attempt(candidate, left)
            except MeshError as error:
                self._failed(candidate, error)
                failures.append(error)
                left = promising(left, candidate, failures)
        raise _worst(failures, question.model)

    # One attempt

    async def _begin(
        self, request: InferenceRequest, asker: Asker, candidate: Candidate
    ) -> Attempt:
        """The answer of the candidate, or of whom it hands the request to. Raises as `_first`."""
        try:
            return await self._first(request, asker, candidate)
        except HandedOver as told:
            if not candidate.weighs:
                raise RemoteError("it hands over what it was asked to answer itself") from told
            other = self.candidates.handed(request, asker.conversation, candidate, told.param or "")
        if other is not None:
            self._handed(candidate, other)
            try:
                return await self._first(request, asker, other)
            except MeshError as error:
                self._failed(other, error)
        return await self._first(request, asker, replace(candidate, weighs=False, settled=True))

    async def _first(
        self, request: InferenceRequest, asker: Asker, candidate: Candidate
    ) -> Attempt:
        """The candidate's answer, with its first delta. Raises MeshErrors."""
        asked_at = trio.current_time()
        async with AsyncExitStack() as stack:
            deltas = await stack.enter_async_context(
                self._open(request, asker.client, candidate, stack)
            )
            attempt = Attempt(candidate, request, deltas)
            await attempt.begin()
            attempt.asking = stack.pop_all()
        self._began(request, candidate, trio.current_time() - asked_at)
        return attempt

    def _open(
        self, request: InferenceRequest, client: str, candidate: Candidate, stack: AsyncExitStack
    ) -> Answer:
        weighs = candidate.weighs and not request.resume
        request = msgspec.structs.replace(request, model=candidate.model, weigh=weighs)
        if candidate.peer is None:
            return self._here(candidate.model).generate(request, client)
        if self.ask is None:
            raise Unavailable("this node is not connected yet", retry_after=1.0)
        if not request.resume:
            stack.enter_context(self._shared(candidate, client))
        stack.enter_context(self.candidates.counted(candidate.peer, candidate.model))
        return self.ask(candidate.peer, request)

    @contextmanager
    def _shared(self, candidate: Candidate, client: str) -> Iterator[None]:
        """One of the requests that may be under way to a peer, for a client. Raises Overloaded."""
        assert candidate.peer is not None
        share = self._shares.setdefault(candidate.peer, Share(STREAMS))
        if not share.take(client):
            wait = candidate.whole / max(candidate.slots, 1)
            raise Overloaded(
                f"{share.total} requests to {candidate.peer} are under way",
                retry_after=min(60.0, max(1.0, wait)),
            )
        try:
            yield
        finally:
            share.give(client)
            if not share.total:
                self._shares.pop(candidate.peer, None)

    def _here(self, model: ModelId) -> Hosted:
        hosted = self._hosted.get(model)
        if hosted is None:  # its server offers it no longer
            raise self.candidates.unknown(model)
        return hosted

    def _began(self, request: InferenceRequest, candidate: Candidate, seconds: float) -> None:
        self.candidates.has_read(candidate, request)
        tokens = self.candidates.sizes.tokens(request.model, request)
        self._firsts.took(request.model, seconds, tokens)
        if candidate.peer is not None:
            self._inventory.trust(candidate.peer)

    def _learn(self, request: InferenceRequest, last: Delta) -> None:
        assert last.usage is not None
        self.candidates.sizes.learn(request.model, request, last.usage.prompt_tokens)

    def _handed(self, giver: Candidate, other: Candidate) -> None:
        peers = [one.peer or self.candidates.me for one in (giver, other)]
        self._journal.info(
            "answer_handed_over",
            f"{peers[0]} hands a conversation with {giver.model} over to {peers[1]}, whose shard "
            f"has more of what it needs", peer=peers[0], model=giver.model, to=peers[1],
        )  # fmt: skip

    # Two at a time

    async def _soonest(
        self, request: InferenceRequest, asker: Asker, candidate: Candidate, left: list[Candidate]
    ) -> Attempt:
        """The candidate's answer; or that of a second one, which is asked where no first token
        comes for longer than usual, if it is faster. Raises the candidate's MeshErrors. A second
        one that failed is taken out of those that are left.
        """
        first = partial(self._begin, request, asker, candidate)
        tokens = self.candidates.sizes.tokens(request.model, request)
        bound = self._firsts.bound(request.model, tokens)
        if bound is None or not left:
            return await first()
        asked_at = trio.current_time()
        late = partial(self._late, bound, request, asker, candidate, left)
        attempt = await Race(first, late, Attempt.close).run()
        if attempt.candidate != candidate:  # how long the late one took at least
            self._firsts.took(request.model, trio.current_time() - asked_at, tokens)
        return attempt

    async def _late(
        self,
        bound: float,
        request: InferenceRequest,
        asker: Asker,
        first: Candidate,
        left: list[Candidate],
    ) -> Callable[[], Awaitable[Attempt | None]] | None:
        await trio.sleep(bound)
        peers = {one.peer for one in left}
        now = self.candidates.of(request, request.id, asker.conversation)
        second = next((one for one in now if one.peer in peers and _is_spare(one)), None)
        if second is None:
            return None
        self._journal.info(
            "answer_hedged",
            f"no first token of {first.model} after {bound:.1f} s: {second.peer} is asked too",
            peer=second.peer, model=first.model, seconds=round(bound, 3),
        )  # fmt: skip
        return partial(self._beside, request, asker, second, left)

    async def _beside(
        self, request: InferenceRequest, asker: Asker, second: Candidate, left: list[Candidate]
    ) -> Attempt | None:
        left[:] = [one for one in left if one.peer != second.peer]
        try:
            return await self._begin(request, asker, second)
        except MeshError as error:
            self._failed(second, error)
            return None

    # An answer that broke

    async def _go_on(self, asker: Asker, broken: Broken) -> Attempt:
        """Raises BrokenOff where nobody goes on with it in time."""
        candidate, error = broken.attempt.candidate, broken.error
        request = broken.progress.request()
        said = sum(len(one.tokens) for one in request.resume)
        self._failed(candidate, error)
        if not (candidate.resumable and broken.progress.is_resumable):
            raise BrokenOff(f"the answer broke off after {said} tokens: {error}") from error
        attempt = await self._resumed(request, asker, broken)
        peer = attempt.candidate.peer or self.candidates.me
        is_exact = goes_on_exactly(candidate, attempt.candidate)
        self._journal.info(
            "answer_resumed", f"{peer} goes on with {request.model} after {said} tokens",
            peer=peer, model=request.model, tokens=said, exact=is_exact,
        )  # fmt: skip
        return attempt

    async def _resumed(self, request: InferenceRequest, asker: Asker, broken: Broken) -> Attempt:
        start, error, pause = trio.current_time(), broken.error, AGAIN
        until = start + PATIENCE
        while trio.current_time() < until:
            left = self.candidates.resumers(
                request, broken.attempt.candidate, broken.failed, asker.conversation
            )
            for candidate in left:
                try:
                    with trio.move_on_at(start + LONGER):
                        return await self._begin(request, asker, candidate)
                except MeshError as failure:
                    error = failure
                    if isinstance(failure, _BUSY):
                        until = start + LONGER  # it says itself that it will do
                    else:
                        self._failed(candidate, failure)
                        broken.failed.add(candidate.peer)
            if self.candidates.is_loading(request.model):
                until = start + LONGER
            await trio.sleep(pause)
            pause = min(pause * 1.5, SELDOM)
        raise BrokenOff(
            f"the answer broke off, and no other node goes on with it: {error}", retry_after=1.0
        ) from error

    # Queries

    async def _reply(
        self, query: Query, client: str, candidate: Candidate, _left: Sequence[Candidate]
    ) -> Reply:
        query = msgspec.structs.replace(query, model=candidate.model)
        if candidate.peer is None:
            reply = await self._here(candidate.model).query(query, client)
        elif self.look is None:
            raise Unavailable("this node is not connected yet", retry_after=1.0)
        else:
            with self.candidates.counted(candidate.peer, candidate.model):
                reply = await self.look(candidate.peer, query)
        if not answers(reply, query):
            raise RemoteError("a reply to another query")
        if candidate.peer is not None:
            self._inventory.trust(candidate.peer)
        return reply

    def _failed(self, candidate: Candidate, error: MeshError) -> None:
        if candidate.peer is None or isinstance(error, RequestError):
            return  # a client's mistake is told to the client
        if not isinstance(error, _HARMLESS):
            self._inventory.suspect(candidate.peer)
        peer, model = candidate.peer, candidate.model
        self._journal.warning(
            "answer_failed", f"{peer} did not answer for {model}: {error}",
            peer=peer, model=model, reason=str(error),
        )  # fmt: skip


def _may_go_on(failures: Sequence[MeshError]) -> bool:
    busy = sum(isinstance(error, _BUSY) for error in failures)
    return len(failures) - busy < MAX_TRIES and busy < MAX_BUSY


def _is_spare(candidate: Candidate) -> bool:
    """Whether it can be asked beside another: by a stream, and without queueing there."""
    is_free = candidate.ahead < candidate.slots
    return candidate.peer is not None and not candidate.suspect and is_free


def _worst(failures: list[MeshError], model: ModelId) -> MeshError:
    """What the client is told when no node answered: that the request is wrong, else to wait, and
    for whom it must wait least; else that nobody could, and why the last one did not.
    """
    for error in reversed(failures):
        if isinstance(error, RequestError):
            return error
    waits = [error for error in failures if isinstance(error, _HARMLESS)]
    if waits:
        return min(waits, key=lambda error: error.retry_after or 0.0)
    last = failures[-1]
    if type(last) is Unavailable:
        return Unavailable(f"no node answers for {model} now: {last}", retry_after=1.0)
    return last
