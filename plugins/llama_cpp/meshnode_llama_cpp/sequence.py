"""A choice with a place in the KV cache: what it has yet to feed, and what is known of it."""

from __future__ import annotations

from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshnode_llama_cpp.chat import Grown
from meshnode_llama_cpp.choice import NOTHING, Choice, joined, rest
from meshnode_llama_cpp.drawing import Fed
from meshnode_llama_cpp.grammar import Matcher
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.prefixes import Rules
from meshnode_llama_cpp.prompt import Part, Prompt
from meshnode_llama_cpp.scheduler import Turn
from meshnode_llama_cpp.seats import Sitter
from meshnode_llama_cpp.speculation import Hope, Lookup
from p2p_mesh.core.records import InferenceRequest, Resume, TextPrompt, Usage

if TYPE_CHECKING:
    from meshnode_llama_cpp.media import Medium  # its import maps libmtmd


def keys_of(parts: Listing[Part]) -> tuple[list[int], dict[int, Medium]]:
    """A prompt by position: token ids, and for each medium numbers below zero, made of its
    content; with the media by the position where each begins.
    """
    keys: list[int] = []
    media: dict[int, Medium] = {}
    for part in parts:
        if isinstance(part, list):
            keys += part
        else:
            media[len(keys)] = part
            keys += [-1 - int.from_bytes(part.digest[:7])] * part.positions
    return keys, media


@dataclass(slots=True)
class Task:
    """An answer to write, with all its choices."""

    number: int
    request: InferenceRequest
    prompt: Prompt
    most: int
    """Tokens of each choice."""
    keys: list[int] = field(init=False)
    media: dict[int, Medium] = field(init=False)
    left: int = field(init=False)
    """Choices that are not finished."""
    cached: int | None = None
    made: int = 0
    reasoning: int = 0
    drafted: int = 0
    accepted: int = 0

    def __post_init__(self) -> None:
        self.keys, self.media = keys_of(self.prompt.parts)
        self.left = self.request.choices

    @property
    def is_scored(self) -> bool:
        """Whether the log-probabilities of the prompt itself are wanted."""
        return self.request.echo and self.request.logprobs is not None

    @property
    def grammar_param(self) -> str:
        """The field of the request that its grammar is of."""
        return "tools" if self.request.schema is None else "response_format"

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=len(self.keys),
            completion_tokens=self.made,
            cached_tokens=min(self.cached or 0, len(self.keys)),
            reasoning_tokens=self.reasoning,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
        )


class Sequence(Sitter):
    """One choice of a task."""

    slot: int

    def __init__(self, task: Task, number: int, model: Model) -> None:
        self.task, self.number = task, number
        self.choice = Choice(task.prompt, model, task.most)
        resume = _resume(task.request, number)
        said = [Grown(text=_written(task, model))] if task.request.echo else []
        if resume is not None:
            said.append(self.choice.replay(resume))
        self.opening = joined(said) if resume is None else rest(joined(said), resume)
        """What its first delta begins with."""
        self.is_silent = resume is not None and resume.finished
        self.is_scored = task.is_scored and resume is None
        self.matcher: Matcher | None = None
        """Of its grammar, as far as its tokens had come when it was asked for."""
        self.was_scored = False
        """The first of its prompt's scores have gone out."""
        super().__init__(task.keys + self.choice.tokens)
        self.read_first = 0
        """Tokens that were there when it came."""
        self.flying = 0
        """Calls with rows of it whose results have not come."""
        self.fed = 0
        """The last call that had rows of it."""
        self.guesses: list[int] = []
        self.hope = Hope()
        self.lookup: Lookup | None = None

    @property
    def is_writing(self) -> bool:
        return self.read >= self.start

    @property
    def medium(self) -> Medium | None:
        """The image or sound that it has come to."""
        return self.task.media.get(self.read)

    def unread(self, rules: Rules) -> int:
        """Tokens of the prompt that can be fed in one run; 0 once it writes."""
        end = min((place for place in self.task.media if place > self.read), default=self.start)
        if rules.forgets(self.start) and self.read < self.start - 1:
            end = min(end, self.start - 1)  # where the state is saved
        return max(0, end - self.read)

    def turn(self, rules: Rules, *, outputs: int) -> Turn:
        """`outputs`: rows that may be answered."""
        return Turn(
            self.unread(rules),
            self.start - self.read_first,
            len(self.guesses),
            outputs if self.is_scored else 2**31,
        )

    def next(self, count: int) -> tuple[list[int], int]:
        """The tokens of its next rows, and how many of them are answered."""
        if self.is_writing:
            return [self.keys[-1], *self.guesses[: count - 1]], count
        end = self.read + count
        outputs = count if self.is_scored else int(end == self.start)
        return self.keys[self.read : end], outputs

    def targets(self, count: int) -> tuple[int, ...]:
        """The token of the prompt after each of its next rows; -1 where none follows."""
        following = self.keys[self.read + 1 : min(self.read + 1 + count, self.start)]
        return (*following, *[-1] * (count - len(following)))

    @property
    def is_half_scored(self) -> bool:
        """Some of its prompt's scores have gone out, and perhaps not all."""
        return self.is_scored and self.was_scored and not self.choice.tokens

    def read_again(self) -> None:
        """The cache has nothing of it any more: what it wrote is read, as its prompt is."""
        self.read = self.highest = self.flying = 0
        self.start = len(self.keys)
        self.read_first = 0
        self.is_scored = self.is_scored and not self.was_scored
        self.guesses = []

    def grown(self, parts: list[Grown]) -> Grown:
        """What it grew by, with what was yet to be said first."""
        opening, self.opening = self.opening, NOTHING
        return joined((opening, *parts))


@dataclass(frozen=True, slots=True)
class Call:
    """What was submitted, and whose rows they are."""

    fed: tuple[tuple[Sequence, Fed], ...]
    writing: int
    read: int
    """Rows of prompts."""
    guessed: int

    @property
    def begins(self) -> bool:
        """Some answer begins with what comes of it."""
        return any(fed.draws and not fed.position for _, fed in self.fed)


def _resume(request: InferenceRequest, number: int) -> Resume | None:
    return next((one for one in request.resume if one.choice == number), None)


def _written(task: Task, model: Model) -> str:
    """The prompt as text."""
    prompt = task.request.prompt
    if isinstance(prompt, TextPrompt):
        return prompt.text
    return b"".join(model.piece(key) for key in task.keys if key >= 0).decode(errors="replace")
