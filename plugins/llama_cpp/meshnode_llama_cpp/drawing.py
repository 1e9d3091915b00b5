"""What is drawn from the rows of a call: by the engine that computed them, or by the last stage of
several, for the one that asks. So all of it are records, which travel.
"""

from __future__ import annotations

from msgspec import Struct

from meshnode_llama_cpp.context import Context
from meshnode_llama_cpp.grammar import Grammars, Matcher
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.sampler import Sampler, logprob
from p2p_mesh.core.records import Sampling, TokenLogprob
from p2p_mesh.errors import RequestError


class Start(Struct, frozen=True):
    """A sequence that begins in a slot."""

    slot: int
    sampling: Sampling
    choice: int = 0
    before: tuple[int, ...] = ()
    """The tokens that penalties look back on, prompt and answer."""
    top: int | None = None
    """So many of the likeliest tokens are told with each; None: nothing of the kind."""
    grammar: str | None = None
    param: str | None = None
    """The field of the request that the grammar is of."""
    taken: tuple[int, ...] = ()
    """Tokens of the answer that the grammar has taken already."""


class Fed(Struct, frozen=True, array_like=True):
    """Rows of one sequence in a call, of which some are answered."""

    slot: int
    row: int
    """The first that is answered."""
    position: int = 0
    """Tokens that the answer has."""
    draws: bool = True
    """A token is drawn from the last row that is answered; with guesses, from each."""
    guesses: tuple[int, ...] = ()
    """The tokens of the rows after the first, as far as they are guessed."""
    targets: tuple[int, ...] = ()
    """The token after each of the first answered rows, whose probability is wanted; -1: none."""


class Drawn(Struct, frozen=True, array_like=True):
    """What came of it: the right guesses, and the token after them."""

    slot: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens that were drawn,"""
    scores: tuple[TokenLogprob, ...] = ()
    """and of the targets."""
    failure: str = ""
    """Why its grammar could not go on."""


class Drawing:
    """The samplers of all sequences of a context."""

    def __init__(self, context: Context, model: Model, grammars: Grammars) -> None:
        self._context, self._model, self._grammars = context, model, grammars
        self._samplers: dict[int, tuple[Sampler, int | None]] = {}

    def begin(self, start: Start, matcher: Matcher | None = None) -> None:
        """`matcher`: that of the grammar, where there is one already. Raises RequestError for a
        grammar that cannot be, or that its tokens broke.
        """
        if matcher is None and start.grammar is not None:
            matcher = self._grammars.compile(start.grammar, param=start.param or "tools")
            for token in start.taken:
                matcher.accept(token)
        self.end(start.slot)
        sampler = Sampler(
            self._context, start.sampling, start.before, choice=start.choice, matcher=matcher
        )
        self._samplers[start.slot] = sampler, start.top

    def end(self, slot: int) -> None:
        """Harmless where nothing is drawn."""
        if (found := self._samplers.pop(slot, None)) is not None:
            found[0].free()

    def draw(self, fed: Fed) -> Drawn:
        """Draws as long as the guesses are right. A slot that is drawn for has begun."""
        sampler, top = self._samplers[fed.slot]
        scores = [
            logprob(self._context.logits(fed.row + place), token, top or 0, self._model)
            for place, token in enumerate(fed.targets)
            if token >= 0
        ]
        tokens: list[int] = []
        logprobs: list[TokenLogprob] = []
        row = fed.row + max(0, len(fed.targets) - 1)
        try:
            while fed.draws:
                place = len(tokens)
                # A copy, since a grammar writes into the others.
                known = None if top is None else self._context.logits(row + place).copy()
                token = sampler.sample(row + place, fed.position + place)
                tokens.append(token)
                if known is not None:
                    logprobs.append(logprob(known, token, top or 0, self._model))
                if self._model.ends(token) or fed.guesses[place : place + 1] != (token,):
                    break
        except RequestError as error:
            return Drawn(fed.slot, failure=str(error))
        return Drawn(fed.slot, tuple(tokens), tuple(logprobs), tuple(scores))
