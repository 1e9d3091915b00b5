"""The answers that are being written, and the step by which all of them grow.

Theory of operation:

1. A choice waits in the queue until there is a seat for it: a slot of the KV cache, with as much of
   its prompt in it as is to be had (seats.py).
2. Each step feeds what scheduler.py chose, in rising order of slots; one token comes back for every
   sequence whose tokens have all been read, more where guesses turn out to be right. Where calls
   are computed is the affair of `steps`: a sequence that writes waits for what it is fed, one that
   reads does not.
3. Images and sounds are fed in a call of their own, when a prompt has been read up to one.
4. A request whose grammar or medium fails ends with an error, and nobody else notices.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from meshnode_llama_cpp.chat import Grown
from meshnode_llama_cpp.choice import NOTHING
from meshnode_llama_cpp.draft import Draft
from meshnode_llama_cpp.drawing import Drawn, Fed, Start
from meshnode_llama_cpp.evenly import Evenly
from meshnode_llama_cpp.frames import Answer, Rejected
from meshnode_llama_cpp.grammar import Grammars
from meshnode_llama_cpp.guesses import Guesses, judge
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.sampling import PENALTY_WINDOW, penalises
from meshnode_llama_cpp.scheduler import Limits, Pace, compose, group
from meshnode_llama_cpp.seats import Seats
from meshnode_llama_cpp.sequence import Call, Sequence, Task
from meshnode_llama_cpp.steps import Steps
from p2p_mesh.core.records import Delta, TokenLogprob
from p2p_mesh.errors import EngineDied, MeshError, RequestError

if TYPE_CHECKING:
    from meshnode_llama_cpp.media import Projector  # its import maps libmtmd

Outcome = Answer | Rejected


class Decoder:
    """`context_length`: tokens of one sequence."""

    def __init__(
        self,
        model: Model,
        steps: Steps,
        *,
        seats: Seats,
        grammars: Grammars,
        limits: Limits,
        context_length: int,
        speculates: bool = False,
        draft: Draft | None = None,
        projector: Projector | None = None,
    ) -> None:
        self._model, self._steps, self._limits = model, steps, limits
        self._memory = steps.memory
        self._seats, self._grammars = seats, grammars
        takes_back = self._memory.rules.trims and not self._memory.rules.cells
        self._guesses = Guesses(
            context_length=context_length,
            looks_up=speculates and takes_back,
            draft=draft if takes_back else None,
        )
        self._projector = projector
        self._pace, self.evenly = Pace(), Evenly()
        self._queue: list[Sequence] = []
        self._live: list[Sequence] = []
        self._calls: deque[Call] = deque()
        self._submitted = 0
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
        if task.prompt.grammar is not None:  # compiled now, so that the client hears of it
            matcher = self._grammars.compile(task.prompt.grammar, param=task.grammar_param)
            for token in sequence.choice.tokens:
                matcher.accept(token)
            sequence.matcher = matcher
        return sequence

    def cancel(self, number: int) -> None:
        """Harmless for an answer that has ended."""
        for sequence in self._taken(number):
            self._leave(sequence)

    def _taken(self, number: int) -> list[Sequence]:
        """Takes the choices of a task out of the queue; returns those that are seated."""
        self._queue = [one for one in self._queue if one.task.number != number]
        return [one for one in self._live if one.task.number == number]

    def seated(self, slot: int) -> Sequence:
        """Who has a slot that rows are fed of."""
        return next(one for one in self._live if one.slot == slot)

    def step(self) -> list[Outcome]:
        """Takes what has come of the calls before. Where there is nothing to tell of them, submits
        another, if there is something to compute: what is told should not wait for that.
        """
        self._hear()
        if not self._outcomes:
            self._seat()
            for sequence in list(self._live):
                if sequence in self._live and sequence.medium is not None:
                    self._look(sequence)
            if self._steps.has_room:
                self._submit()
            self._hear()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _hear(self) -> None:
        for result in self._steps.results():
            call = self._calls.popleft()
            self._pace.observe(call.writing, call.read, call.guessed, result.seconds)
            reads = any(not one.is_writing for one in self._live)
            is_beside = reads and call.writing > 0 and not call.begins
            self.evenly.observe(time.perf_counter(), is_beside=is_beside)
            for (sequence, fed), drawn in zip(call.fed, result.drawn, strict=True):
                if sequence in self._live:  # not refused with another choice of its task
                    self._take(sequence, fed, drawn)

    def restart(self) -> None:
        """What was submitted is lost, and the memory is empty: all that is live is read again."""
        self._calls.clear()
        self._seats.clear()
        for sequence in list(self._live):
            if sequence in self._live and sequence.is_half_scored:
                # They cannot be had again without those that have gone out.
                self._refuse(sequence, EngineDied("a part of the model was lost while it read"))
        for sequence in self._live:
            sequence.read_again()
            self._start(sequence)

    def _seat(self) -> None:
        """Seats those who wait: whose task has the fewest choices seated, then who came first.
        One that waits for a prefix lets others pass, but not those of its own task.
        """
        waits: set[int] = set()
        while self._queue and not self._seats.is_full:
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
        self._guesses.begin(sequence)
        self._live.append(sequence)
        self._start(sequence)

    def _start(self, sequence: Sequence) -> None:
        task, sampling = sequence.task, sequence.task.request.sampling
        before = [key for key in sequence.keys if key >= 0] if penalises(sampling) else []
        start = Start(
            sequence.slot,
            sampling,
            choice=sequence.number,
            before=tuple(before[-PENALTY_WINDOW:]),
            top=task.request.logprobs,
            grammar=task.prompt.grammar,
            param=task.grammar_param,
            taken=tuple(sequence.choice.tokens) if task.prompt.grammar is not None else (),
        )
        try:
            self._steps.begin(start, sequence.matcher)
        except RequestError as error:
            self._refuse(sequence, error)

    def _look(self, sequence: Sequence) -> None:
        """Feeds the image or sound that a prompt has come to."""
        medium = sequence.medium
        assert medium is not None
        assert self._projector is not None
        try:
            sequence.read = self._steps.look(
                self._projector, medium, slot=sequence.slot, position=sequence.read
            )
        except RequestError as error:
            self._refuse(sequence, error)
        sequence.highest = max(sequence.highest, sequence.read)

    # What is fed

    def _submit(self) -> None:
        """Fills the rows of a call, and hands it over."""
        ready = self._ready()
        if ready is None:
            return
        self._guess(ready)
        write = set(ready)
        call = self._fill([one for one in self._live if not one.is_writing or one in write])
        if not call.fed:
            return
        self._calls.append(call)
        self._steps.submit([fed for _, fed in call.fed], writing=call.writing)
        self._submitted += 1
        for sequence, _ in call.fed:
            sequence.flying += 1
            sequence.fed = self._submitted
            if sequence.read == sequence.start - 1 and self._memory.rules.forgets(sequence.start):
                self._seats.save(sequence.slot)

    def _ready(self) -> list[Sequence] | None:
        """Those who write in the next call; None where it is too early for one. As many go together
        as `steps` wants, so those who have come back early wait for others. Prompts are read beside
        those who write, in calls that are bounded for them.
        """
        writing = sorted((one for one in self._live if one.is_writing), key=lambda one: one.slot)
        if len(writing) < 2:
            return None if writing and writing[0].flying else writing
        fed = [None if one.flying else one.fed for one in writing]
        calls = sum(call.writing > 0 for call in self._calls)
        places = group(fed, self._steps.together(len(writing)), calls)
        return None if places is None else [writing[place] for place in places]

    def _fill(self, ready: list[Sequence]) -> Call:
        outputs = self._steps.outputs - len(self._live)
        scored = max(1, sum(one.is_scored for one in ready))
        turns = [one.turn(self._memory.rules, outputs=max(1, outputs // scored)) for one in ready]
        counts = compose(turns, self._limits, self._pace)
        self._steps.rows.clear()
        fed: list[tuple[Sequence, Fed]] = []
        writing = read = guessed = 0
        pairs = sorted(zip(ready, counts, strict=True), key=lambda pair: pair[0].slot)
        for sequence, count in pairs:
            if not count:
                continue
            if sequence.is_writing:
                writing, guessed = writing + 1, guessed + count - 1
            else:
                read += count
            fed.append((sequence, self._feed(sequence, count)))
        return Call(tuple(fed), writing, read, guessed)

    def _feed(self, sequence: Sequence, count: int) -> Fed:
        tokens, answered = sequence.next(count)
        first = self._steps.rows.add(sequence.slot, sequence.read, tokens, outputs=answered)
        sequence.highest = max(sequence.highest, sequence.read + count)
        position = len(sequence.choice.tokens)
        if sequence.is_writing:
            return Fed(sequence.slot, first, position, guesses=tuple(sequence.guesses[: count - 1]))
        targets = sequence.targets(count) if sequence.is_scored else ()
        sequence.read += count
        draws = sequence.is_writing and bool(sequence.task.most)
        return Fed(sequence.slot, first, position, draws=draws, targets=targets)

    def _guess(self, writing: list[Sequence]) -> None:
        """None while a prompt is read: what a step may take longer is for that."""
        self._pace.delay = self._steps.delay
        are_wanted = all(one.is_writing and not one.is_scored for one in self._live)
        if writing and self._guesses.are_made and are_wanted:
            self._guesses.make(writing, self._steps.outputs - len(self._live), self._pace)

    # What came of a call

    def _take(self, sequence: Sequence, fed: Fed, drawn: Drawn) -> None:
        sequence.flying -= 1
        if drawn.failure:
            param = sequence.task.grammar_param
            self._refuse(sequence, RequestError(drawn.failure, param=param))
            return
        if fed.targets:
            self._score(sequence, drawn)
        if drawn.tokens:
            self._write(sequence, fed, drawn)
        elif sequence.is_writing and not sequence.flying:
            self._finish(sequence, NOTHING)  # only the prompt was to be read

    def _write(self, sequence: Sequence, fed: Fed, drawn: Drawn) -> None:
        """Takes the tokens, up to one that ends the answer."""
        choice = sequence.choice
        grown: list[Grown] = []
        for token in drawn.tokens:
            grown.append(choice.push(token))
            if choice.finish:
                break
        tokens = drawn.tokens[: len(grown)]
        if sequence.read < len(sequence.keys):  # the row of its last token was fed, and guesses
            count = len(fed.guesses) + 1
            sequence.read += len(tokens)
            if fed.guesses:
                judge(sequence, len(fed.guesses), len(tokens) - 1)
            if count > len(tokens):
                self._memory.trim(sequence.slot, sequence.read)
        sequence.keys += tokens
        sequence.guesses = []
        if sequence.lookup is not None:
            sequence.lookup.extend(tokens)
        ends = self._finish if choice.finish else self._say
        ends(sequence, sequence.grown(grown), tokens, drawn.logprobs[: len(tokens)])

    def _score(self, sequence: Sequence, drawn: Drawn) -> None:
        """Log-probabilities of a prompt's own tokens: each row tells of the token after it. They
        go out as they are computed; all together would be a very large delta.
        """
        scores: list[TokenLogprob] = []
        if not sequence.was_scored and sequence.keys[0] >= 0:
            scores.append(TokenLogprob(token=sequence.keys[0]))
        sequence.was_scored = True
        shown = [
            msgspec.structs.replace(one, piece=self._model.piece(one.token))
            for one in (*scores, *drawn.scores)  # a control token is not seen in a text
        ]
        self._say(sequence, sequence.grown([]), scores=shown)

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

    def _refuse(self, sequence: Sequence, error: MeshError) -> None:
        """Ends all choices of its task. What the cache has of them is not known."""
        number = sequence.task.number
        for one in self._taken(number):
            self._leave(one, keeps=False)
        self._outcomes = [one for one in self._outcomes if one.number != number]
        self._outcomes.append(Rejected(number, error.code, str(error), error.param))

    def _leave(self, sequence: Sequence, *, keeps: bool = True) -> None:
        keeps = keeps and not sequence.flying  # what is on its way will be in the cache as well
        self._live.remove(sequence)
        (self._seats.leave if keeps else self._seats.drop)(sequence.slot)
        self._steps.end(sequence.slot)
