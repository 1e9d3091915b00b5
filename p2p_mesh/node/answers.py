"""From a question to the node that answers it: here, at a peer, or at the next peer; and on to
another where an answer breaks (attempts.py). Who could, candidates.py knows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import count
from typing import TypeVar

import msgspec
import trio

from p2p_mesh.core.estimates import Firsts
from p2p_mesh.core.inventory import Inventory
from p2p_mesh.core.names import ModelId, PeerId, RequestId
from p2p_mesh.core.records import Delta, InferenceRequest, Query, Reply
from p2p_mesh.core.routing import Candidate, answers, promising
from p2p_mesh.errors import (
    BrokenOff,
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
from p2p_mesh.node.attempts import Attempt, Broken, Lasting
from p2p_mesh.node.candidates import Candidates
from p2p_mesh.serve.supervisor import Hosted

Answer = AbstractAsyncContextManager[AsyncIterator[Delta]]
Ask = Callable[[PeerId, InferenceRequest], Answer]
Look = Callable[[PeerId, Query], Awaitable[Reply]]

T = TypeVar("T")

MAX_TRIES = 4
"""Nodes that one question is sent to at most, before the first delta or the reply."""

PATIENCE = 10.0
"""Seconds that a broken answer waits for a node that could go on with it,"""
LONGER = 60.0
"""and that it waits where one could, and is busy or loading."""
AGAIN = 0.2
"""Seconds until it looks again."""

_BUSY = (Overloaded, Loading)
_HARMLESS = (Overloaded, Loading, UnknownModel, EngineDied)
"""Errors of which a node tells itself: it lives, and its other models too."""


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
        self._queries = count()

    def models(self) -> tuple[ModelCard, ...]:
        return self.candidates.models()

    @asynccontextmanager
    async def answer(
        self, request: InferenceRequest, client: str = ""
    ) -> AsyncIterator[AsyncIterator[Delta]]:
        """The answer of the best node that gives one. A node that fails before its first delta
        is passed over for the next; after it, another goes on. Raises MeshErrors.
        """
        self.counted(request.model)
        begin = partial(self._soonest, request, client)
        attempt = await self._try(request, request.id, begin)
        lasting = Lasting(
            request, attempt, partial(self._go_on, client), partial(self._learn, request)
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
        attempt: Callable[[Candidate, Sequence[Candidate]], Awaitable[T]],
    ) -> T:
        """What the first of the candidates gives that gives anything."""
        failures: list[MeshError] = []
        left = self.candidates.of(question, turn)
        while left and len(failures) < MAX_TRIES:
            candidate, *left = left
            try:
                return await attempt(candidate, left)
            except MeshError as error:
                self._failed(candidate, error)
                failures.append(error)
                left = promising(left, candidate, failures)
        raise _worst(failures, question.model)

    # One attempt

    async def _begin(self, request: InferenceRequest, client: str, candidate: Candidate) -> Attempt:
        """The candidate's answer, with its first delta. Raises MeshErrors."""
        asked_at = trio.current_time()
        async with AsyncExitStack() as stack:
            deltas = await stack.enter_async_context(self._open(request, client, candidate, stack))
            attempt = Attempt(candidate, request, deltas)
            await attempt.begin()
            attempt.asking = stack.pop_all()
        self._began(request, candidate, trio.current_time() - asked_at)
        return attempt

    def _open(
        self, request: InferenceRequest, client: str, candidate: Candidate, stack: AsyncExitStack
    ) -> Answer:
        request = msgspec.structs.replace(request, model=candidate.model)
        if candidate.peer is None:
            return self._here(candidate.model).generate(request, client)
        if self.ask is None:
            raise Unavailable("this node is not connected yet", retry_after=1.0)
        stack.enter_context(self.candidates.counted(candidate.peer, candidate.model))
        return self.ask(candidate.peer, request)

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

    # Two at a time

    async def _soonest(
        self,
        request: InferenceRequest,
        client: str,
        candidate: Candidate,
        left: Sequence[Candidate],
    ) -> Attempt:
        """The candidate's answer; or that of a second one, which is asked where no first token
        comes for longer than usual, if it is faster. Raises the candidate's MeshErrors.
        """
        tokens = self.candidates.sizes.tokens(request.model, request)
        bound = self._firsts.bound(request.model, tokens)
        second = next((one for one in left if _is_spare(one)), None)
        if bound is None or second is None:
            return await self._begin(request, client, candidate)
        first = partial(self._begin, request, client, candidate)
        return await self._race(first, partial(self._late, bound, request, client, second))

    async def _late(
        self, bound: float, request: InferenceRequest, client: str, candidate: Candidate
    ) -> Attempt | None:
        await trio.sleep(bound)
        peer, model = candidate.peer, candidate.model
        self._journal.info(
            "answer_hedged", f"no first token of {model} after {bound:.1f} s: {peer} is asked too",
            peer=peer, model=model, seconds=round(bound, 3),
        )  # fmt: skip
        try:
            return await self._begin(request, client, candidate)
        except MeshError as error:
            self._failed(candidate, error)
            return None

    async def _race(
        self,
        first: Callable[[], Awaitable[Attempt]],
        second: Callable[[], Awaitable[Attempt | None]],
    ) -> Attempt:
        """Whichever begins first; the other is left. Raises what `first` does."""
        won: list[Attempt] = []
        failure: MeshError | None = None

        async def beside(cancel: Callable[[], None]) -> None:
            if (attempt := await second()) is not None:
                won.append(attempt)
                cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(beside, nursery.cancel_scope.cancel)
                try:
                    won.append(await first())
                except MeshError as error:
                    failure = error
                nursery.cancel_scope.cancel()
        except BaseException:
            await _close(won)
            raise
        await _close(won[1:])
        if won:
            return won[0]
        assert failure is not None
        raise failure

    # An answer that broke

    async def _go_on(self, client: str, broken: Broken) -> Attempt:
        """Raises BrokenOff where nobody goes on with it in time."""
        candidate, error = broken.attempt.candidate, broken.error
        request = broken.progress.request()
        said = sum(len(one.tokens) for one in request.resume)
        self._failed(candidate, error)
        if not (candidate.resumable and broken.progress.is_resumable):
            raise BrokenOff(f"the answer broke off after {said} tokens: {error}") from error
        attempt = await self._resumed(request, client, broken)
        peer = attempt.candidate.peer or self.candidates.me
        is_exact = bool(candidate.numerics) and candidate.numerics == attempt.candidate.numerics
        self._journal.info(
            "answer_resumed", f"{peer} goes on with {request.model} after {said} tokens",
            peer=peer, model=request.model, tokens=said, exact=is_exact,
        )  # fmt: skip
        return attempt

    async def _resumed(self, request: InferenceRequest, client: str, broken: Broken) -> Attempt:
        start, error = trio.current_time(), broken.error
        until = start + PATIENCE
        while trio.current_time() < until:
            left = self.candidates.resumers(request, broken.attempt.candidate, broken.failed)
            for candidate in left:
                try:
                    with trio.move_on_at(start + LONGER):
                        return await self._begin(request, client, candidate)
                except MeshError as failure:
                    self._failed(candidate, failure)
                    if isinstance(failure, _BUSY):
                        until = start + LONGER
                    else:
                        broken.failed.add(candidate.peer)
                    error = failure
            if self.candidates.is_loading(request.model):
                until = start + LONGER
            await trio.sleep(AGAIN)
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


def _is_spare(candidate: Candidate) -> bool:
    """Whether it can be asked beside another: by a stream, and without queueing there."""
    is_free = candidate.ahead < candidate.slots
    return candidate.peer is not None and not candidate.suspect and is_free


async def _close(attempts: Sequence[Attempt]) -> None:
    with trio.CancelScope(shield=True):
        for attempt in attempts:
            await attempt.close()


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
