"""Listens to an engine while it answers: how fast it is, and whether it lives.

An engine whose process is stopped, or hangs in a driver, ends nothing and says nothing. So where
answers are due and none comes for long, it is asked something cheap; one that does not reply to
that is given up (core/silence.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress

import trio

from p2p_mesh.core.estimates import TOKEN_SIZE, size
from p2p_mesh.core.names import ModelId
from p2p_mesh.core.offers import Take, offer, then
from p2p_mesh.core.records import (
    Delta,
    InferenceRequest,
    Query,
    Reply,
    Scores,
    TextPrompt,
    TokenizeQuery,
    Vectors,
)
from p2p_mesh.core.routing import needs
from p2p_mesh.core.silence import Silence
from p2p_mesh.core.tempo import Tempo
from p2p_mesh.errors import MeshError
from p2p_mesh.serve.backend import Engine

SENSES = frozenset({"vision", "audio"})

LOOK_EVERY = 5.0
"""Seconds between two looks at how long the engine has been silent."""

PROBE_SHARE = 1 / 3
"""Of the silence that is nothing unusual, so much is left for the reply: it may have to wait for
the step that is being computed.
"""


class Pulse:
    """Of one life of an engine."""

    def __init__(
        self, engine: Engine, model: ModelId, tempo: Tempo, changed: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._probe = TokenizeQuery(model=model, prompt=TextPrompt(text="a"))
        self._tempo = tempo
        self._changed = changed
        """Called when the speed is another than was announced."""
        self._silence = Silence(tempo.slack)

    @contextmanager
    def working(self, question: InferenceRequest | Query) -> Iterator[Work]:
        """The engine has this to do meanwhile."""
        started = trio.current_time()
        work = Work(question, started, self._tempo, self._silence)
        # How fast text is read says nothing of images and sounds, which are encoded first.
        prefill = 0.0 if needs(question) & SENSES else self._tempo.prefill
        tokens = size(question) / TOKEN_SIZE
        self._silence.begin(work, started, tokens=tokens, prefill=prefill)
        try:
            yield work
        finally:
            now = trio.current_time()
            self._silence.end(work, now)
            if work.is_heard and tokens:  # what was refused, or asks the vocabulary, is no measure
                self._tempo.held(now - started)
            if self._tempo.is_news(now):
                self._changed()

    async def watch(self) -> str:
        """Returns when the engine has ended, or does not reply any longer, with the reason."""
        while True:
            with trio.move_on_after(LOOK_EVERY):
                return await self._engine.wait_ended()
            if self._silence.is_long(trio.current_time()) and not await self._replies():
                self._silence.give_up()
                return "it gave no sign of life, and did not reply"

    async def _replies(self) -> bool:
        with trio.move_on_after(PROBE_SHARE * self._silence.patience):
            with suppress(MeshError):  # it may have no vocabulary: to say so is a reply
                await self._engine.query(self._probe)
            self._silence.lives(trio.current_time())
            return True
        return False


class Work:
    """One thing that an engine has to do."""

    def __init__(
        self, question: InferenceRequest | Query, started: float, tempo: Tempo, silence: Silence
    ) -> None:
        self._question = question
        self._started = started
        self._tempo = tempo
        self._silence = silence
        self._first: float | None = None
        self.is_heard = False
        """Something came of it."""

    def hear(self, delta: Delta) -> None:
        now = trio.current_time()
        self._silence.hear(self, now)
        if self._first is None:
            self._first, self.is_heard = now, True
            self._tempo.began(now - self._started)
        if delta.usage is not None and self._is_typical():
            self._tempo.answered(delta.usage, self._first - self._started, now - self._first)

    def _is_typical(self) -> bool:
        """Whether the answer shows how fast an answer is read and written: not where several are
        written at once, nor where a part was written elsewhere and is only read here.
        """
        asked = self._question
        return isinstance(asked, InferenceRequest) and asked.choices == 1 and not asked.resume

    def take(self, reply: Reply) -> None:
        """The reply to a query."""
        now = trio.current_time()
        self._silence.hear(self, now)
        self.is_heard = True
        if isinstance(reply, Vectors | Scores):
            self._tempo.read(reply.prompt_tokens, now - self._started)


class Heard:
    """An answer on its way from the engine, listened to."""

    def __init__(self, deltas: AsyncIterator[Delta], work: Work) -> None:
        self._deltas = deltas
        self._work = work

    def offer(self, take: Take[Delta]) -> None:
        """See core/offers.py."""
        offer(self._deltas, then(take, self._work.hear))

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        delta = await anext(self._deltas)
        self._work.hear(delta)
        return delta
