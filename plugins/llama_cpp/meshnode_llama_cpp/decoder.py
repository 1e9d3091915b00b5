"""The answers that are being written, and the step by which all of them grow.

Theory of operation:

1. A choice waits in the queue until there is a seat for it: a slot of the KV cache, with as much of
   its prompt in it as is to be had (seats.py).
2. Each step feeds what scheduler.py chose, in rising order of slots, and draws one token for every
   sequence whose tokens have all been read; more where guesses turn out to be right.
3. Images and sounds are fed in a call of their own, when a prompt has been read up to one.
4. A request whose grammar or medium fails ends with an error, and nobody else notices.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from meshnode_llama_cpp.chat import Grown
from meshnode_llama_cpp.choice import NOTHING
from meshnode_llama_cpp.context import Context
from meshnode_llama_cpp.draft import Draft
from meshnode_llama_cpp.frames import Answer, Rejected
from meshnode_llama_cpp.grammar import Grammars
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.sampler import Sampler, logprob
from meshnode_llama_cpp.scheduler import Limits, Pace, compose
from meshnode_llama_cpp.seats import Seats
from meshnode_llama_cpp.sequence import Sequence, Task
from meshnode_llama_cpp.speculation import MOST, Lookup
from p2p_mesh.core.records import Delta, TokenLogprob
from p2p_mesh.errors import RequestError

if TYPE_CHECKING:
    from meshnode_llama_cpp.media import Projector  # its import maps libmtmd

Outcome = Answer | Rejected


class Decoder:
    """`context_length`: tokens of one sequence."""

    def __init__(
        self,
        model: Model,
        context: Context,
        *,
        seats: Seats,
        grammars: Grammars,
        limits: Limits,
        context_length: int,
        speculates: bool = False,
        draft: Draft | None = None,
        projector: Projector | None = None,
    ) -> None:
        self._model, self._context, self._limits = model, context, limits
        self._seats, self._grammars = seats, grammars
        self._length = context_length
        takes_back = context.rules.trims and not context.rules.cells
        self._speculates = speculates and takes_back
        self._draft = draft if takes_back else None
        self._projector = projector
        self._pace = Pace()
        self._queue: list[Sequence] = []
        self._live: list[Sequence] = []
        self._outcomes: list[Outcome] = []

    @property
    def idle(self) -> bool:
        return not self._live and not self._queue and not self._outcomes

    def add(self, task: Task) -> None:
        """Raises RequestError for a grammar that cannot be, or that a broken answer broke."""
        numbers = range(task.request.choices)
        for sequence in [self._sequence(task, number) for number in numbers]:
            is_over = sequence.choice.finish is not None or sequence.is_silent
            if is_over or not (task.most or sequence.is_scored):
                self._finish(sequence, sequence.grown([]))
            else:
                self._queue.append(sequence)

    def _sequence(self, task: Task, number: int) -> Sequence:
        sequence = Sequence(task, number, self._model)
        if task.prompt.grammar is not None:
            param = "tools" if task.request.schema is None else "response_format"
            sequence.matcher = self._grammars.compile(task.prompt.grammar, param=param)
            for token in sequence.choice.tokens:
                sequence.matcher.accept(token)
        return sequence

    def cancel(self, number: int) -> None:
        """Harmless for an answer that has ended."""
        for sequence in self._taken(number):
            self._leave(sequence)

    def _taken(self, number: int) -> list[Sequence]:
        """Takes the choices of a task out of the queue; returns those that are seated."""
        self._queue = [one for one in self._queue if one.task.number != number]
        return [one for one in self._live if one.task.number == number]

    def step(self) -> list[Outcome]:
        """One call of llama.cpp, and what came of it."""
        self._seat()
        for sequence in list(self._live):
            if sequence in self._live and sequence.medium is not None:
                self._look(sequence)
        fed = self._feed()
        if fed:
            self._compute(fed)
        for sequence, row, count in fed:
            if sequence in self._live:  # not refused with another choice of its task
                self._take(sequence, row, count)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _seat(self) -> None:
        """Seats those who wait: whose task has the fewest choices seated, then who came first.
        One that waits for a prefix lets others pass, but not those of its own task.
        """
        waits: set[int] = set()
        while not self._seats.is_full:
            seated = Counter(one.task.number for one in self._live)
            free = [one for one in self._queue if one.task.number not in waits]
            if not free:
                return
            sequence = min(free, key=lambda one: seated[one.task.number])
            slot = self._seats.take(sequence, fresh=sequence.is_scored)
            if slot is None:
                waits.add(sequence.task.number)
            else:
                self._queue.remove(sequence)
                self._begin(sequence, slot)

    def _begin(self, sequence: Sequence, slot: int) -> None:
        task, sequence.slot = sequence.task, slot
        sequence.read_first = sequence.read
        if task.cached is None:
            task.cached = sequence.read
        tokens = [key for key in sequence.keys if key >= 0]
        sequence.sampler = Sampler(
            self._context,
            task.request.sampling,
            tokens,
            choice=sequence.number,
            matcher=sequence.matcher,
        )
        if self._speculates:
            sequence.lookup = Lookup(tokens)
        self._live.append(sequence)

    def _look(self, sequence: Sequence) -> None:
        """Feeds the image or sound that a prompt has come to."""
        medium = sequence.medium
        assert medium is not None
        assert self._projector is not None
        try:
            sequence.read = self._projector.feed(
                medium,
                self._context.handle,
                slot=sequence.slot,
                position=sequence.read,
                rows=self._limits.rows,
            )
        except RequestError as error:
            self._refuse(sequence, error)
        sequence.highest = max(sequence.highest, sequence.read)

    def _feed(self) -> list[tuple[Sequence, int, int]]:
        """Fills the rows; returns who has some, the first row that is answered, and how many
        tokens were fed.
        """
        self._guess()
        outputs = self._context.outputs - len(self._live)
        scored = max(1, sum(one.is_scored for one in self._live))
        turns = [
            one.turn(self._context.rules, outputs=max(1, outputs // scored)) for one in self._live
        ]
        counts = compose(turns, self._limits, self._pace)
        rows, fed = self._context.rows, []
        rows.clear()
        pairs = sorted(zip(self._live, counts, strict=True), key=lambda pair: pair[0].slot)
        for sequence, count in pairs:
            if count:
                tokens, answered = sequence.next(count)
                row = rows.add(sequence.slot, sequence.read, tokens, outputs=answered)
                sequence.highest = max(sequence.highest, sequence.read + count)
                fed.append((sequence, row, count))
        return fed

    def _compute(self, fed: Iterable[tuple[Sequence, int, int]]) -> None:
        start = time.perf_counter()
        self._context.decode()
        writing = sum(sequence.is_writing for sequence, _, _ in fed)
        rows = int(self._context.rows.batch.n_tokens)
        self._pace.observe(writing, rows - writing, time.perf_counter() - start)

    # Guesses

    def _guess(self) -> None:
        writing = [one for one in self._live if one.is_writing]
        if not writing or not (self._speculates or self._draft):
            return
        if any(one.is_scored for one in self._live):
            return
        room = (self._context.outputs - len(self._live)) // len(writing)
        wanted: dict[int, tuple[list[int], int]] = {}
        for sequence in writing:
            most = min(room, MOST, self._room(sequence))
            sequence.guesses = sequence.lookup.guess(most) if sequence.lookup else []
            if sequence.guesses or self._draft is None:
                count = sequence.hope.count(len(sequence.guesses), len(writing), self._pace)
                del sequence.guesses[count:]
            elif not sequence.task.media:
                count = sequence.hope.count(
                    most, len(writing), self._pace, each=self._draft.seconds
                )
                if count:
                    wanted[sequence.slot] = sequence.keys, count
        if self._draft is not None and wanted:
            guesses = self._draft.guess(wanted)
            for sequence in writing:
                sequence.guesses = guesses.get(sequence.slot, sequence.guesses)

    def _room(self, sequence: Sequence) -> int:
        """How many tokens may follow the next one."""
        left = sequence.task.most - len(sequence.choice.tokens) - 1
        return max(0, min(left, self._length - len(sequence.keys) - 1))

    # What came of a step

    def _take(self, sequence: Sequence, row: int, count: int) -> None:
        try:
            if sequence.is_writing:
                self._write(sequence, row, count)
            else:
                self._read(sequence, row, count)
        except RequestError as error:  # its grammar could not go on
            self._refuse(sequence, error)

    def _read(self, sequence: Sequence, row: int, count: int) -> None:
        """Rows of a prompt were computed."""
        if sequence.is_scored:
            self._score(sequence, row, count)
        sequence.read += count
        if sequence.read == sequence.start - 1 and self._context.rules.forgets(sequence.start):
            self._seats.save(sequence.slot)
        if not sequence.is_writing:
            return
        if sequence.task.most:
            self._write(sequence, row + count - 1 if sequence.is_scored else row, 1, is_first=True)
        else:
            self._finish(sequence, NOTHING)

    def _write(self, sequence: Sequence, row: int, count: int, *, is_first: bool = False) -> None:
        """Draws tokens as long as the guesses were right."""
        choice, guesses = sequence.choice, sequence.guesses
        grown: list[Grown] = []
        tokens: list[int] = []
        scores: list[TokenLogprob] = []
        for place in range(count):
            token = self._draw(sequence, row + place, scores)
            tokens.append(token)
            grown.append(choice.push(token))
            if choice.finish or place >= len(guesses) or guesses[place] != token:
                break
        if not is_first:
            sequence.read += len(tokens)
            if count > 1:
                self._judge(sequence, count - 1, len(tokens) - 1)
        if count > len(tokens):
            self._context.trim(sequence.slot, sequence.read)
        sequence.keys += tokens
        sequence.guesses = []
        if sequence.lookup is not None:
            sequence.lookup.extend(tokens)
        if choice.finish:
            self._finish(sequence, sequence.grown(grown), tokens, scores)
        else:
            self._say(sequence, sequence.grown(grown), tokens, scores)

    def _judge(self, sequence: Sequence, guessed: int, right: int) -> None:
        sequence.hope.observe(guessed, right)
        sequence.task.drafted += guessed
        sequence.task.accepted += right

    def _draw(self, sequence: Sequence, row: int, scores: list[TokenLogprob]) -> int:
        top = sequence.task.request.logprobs
        position = len(sequence.choice.tokens)
        if top is None:
            return sequence.sampler.sample(row, position)
        logits = self._context.logits(row).copy()  # a grammar writes into the others
        token = sequence.sampler.sample(row, position)
        scores.append(logprob(logits, token, top, self._model))
        return token

    def _score(self, sequence: Sequence, row: int, count: int) -> None:
        """Log-probabilities of a prompt's own tokens: each row tells of the token after it. They
        go out as they are computed; all together would be a very large delta.
        """
        top = sequence.task.request.logprobs or 0
        scores: list[TokenLogprob] = []
        if sequence.read == 0 <= sequence.keys[0]:
            scores.append(TokenLogprob(token=sequence.keys[0], piece=self._shown(sequence.keys[0])))
        for place in range(count):
            following = sequence.read + place + 1
            if following < sequence.start and sequence.keys[following] >= 0:
                token, logits = sequence.keys[following], self._context.logits(row + place)
                found = logprob(logits, token, top, self._model)
                scores.append(msgspec.structs.replace(found, piece=self._shown(token)))
        self._say(sequence, sequence.grown([]), scores=scores)

    def _shown(self, token: int) -> bytes:
        """A token as it stands in the text, where a control token is not seen."""
        return self._model.piece(token)

    def _say(
        self,
        sequence: Sequence,
        grown: Grown,
        tokens: Iterable[int] = (),
        scores: Iterable[TokenLogprob] = (),
    ) -> None:
        task, finish = sequence.task, sequence.choice.finish
        delta = Delta(
            choice=sequence.number,
            tokens=tuple(tokens),
            text=grown.text,
            reasoning=grown.reasoning,
            calls=grown.calls,
            logprobs=tuple(scores),
            finish=None if sequence.is_silent else finish,
            usage=task.usage() if finish and not task.left else None,
        )
        self._outcomes.append(Answer(task.number, delta))

    def _finish(
        self,
        sequence: Sequence,
        grown: Grown,
        tokens: Iterable[int] = (),
        scores: Iterable[TokenLogprob] = (),
    ) -> None:
        task, choice = sequence.task, sequence.choice
        choice.finish = choice.finish or "length"
        task.left -= 1
        task.made += len(choice.tokens)
        task.reasoning += choice.reasoning_tokens
        if sequence in self._live:
            self._leave(sequence)
        if not sequence.is_silent or not task.left:
            self._say(sequence, grown, tokens, scores)

    def _refuse(self, sequence: Sequence, error: RequestError) -> None:
        """Ends all choices of its task. What the cache has of them is not known."""
        number = sequence.task.number
        for one in self._taken(number):
            self._leave(one, keeps=False)
        self._outcomes = [one for one in self._outcomes if one.number != number]
        self._outcomes.append(Rejected(number, error.code, str(error), error.param))

    def _leave(self, sequence: Sequence, *, keeps: bool = True) -> None:
        self._live.remove(sequence)
        (self._seats.leave if keeps else self._seats.drop)(sequence.slot)
        sequence.sampler.free()
