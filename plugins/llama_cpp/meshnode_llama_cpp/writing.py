"""Requests and queries to a model that writes, wherever its layers are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from meshnode_llama_cpp import frames
from meshnode_llama_cpp.decoder import Decoder
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.prompt import Prompts
from meshnode_llama_cpp.sequence import Task
from p2p_mesh.core.records import (
    DetokenizeQuery,
    InferenceRequest,
    Query,
    Reply,
    TokenizeQuery,
)
from p2p_mesh.errors import ContextExceeded, RequestError
from p2p_mesh.serve.backend import Capability


class Writing:
    """`model`: the vocabulary at least. `context_length`: tokens of one sequence."""

    capabilities: tuple[Capability, ...] = ("generate",)

    def __init__(
        self, model: Model, prompts: Prompts, decoder: Decoder, *, context_length: int
    ) -> None:
        self._model, self._prompts, self._decoder = model, prompts, decoder
        self._context_length = context_length
        self.notes = prompts.notes

    @property
    def idle(self) -> bool:
        return self._decoder.idle

    @property
    def hold(self) -> float:
        return self._decoder.evenly.hold

    def ask(self, number: int, request: InferenceRequest) -> None:
        self._check(request)
        prompt = self._prompts.read(request)
        if not isinstance(prompt.parts[-1], list):
            raise RequestError(
                "the prompt ends with an image or a sound; a text must follow", param="messages"
            )
        cells = sum(len(part) if isinstance(part, list) else part.rows for part in prompt.parts)
        room = self._context_length - cells
        if room < 1:
            raise ContextExceeded(
                f"the prompt has {cells} tokens, the model's context is {self._context_length}",
                param="messages",
            )
        most = room if request.max_tokens is None else min(room, request.max_tokens)
        self._decoder.add(Task(number, request, prompt, most))

    def _check(self, request: InferenceRequest) -> None:
        """Token ids that nobody looked at yet."""
        known = self._model.token_count
        for token, _ in request.sampling.logit_bias:
            if token >= known:
                raise RequestError(
                    f"logit_bias has token {token}; the model's vocabulary has {known}",
                    param="logit_bias",
                )
        if any(token >= known for resume in request.resume for token in resume.tokens):
            raise RequestError(
                f"an answer of another vocabulary cannot go on: this one has {known} tokens"
            )

    def look(self, query: Query, cancelled: Callable[[], bool]) -> Reply:
        match query:
            case TokenizeQuery():
                return self._prompts.tokens(query)
            case DetokenizeQuery():
                return self._prompts.text(query)
        raise RequestError(f"{self._model.name} makes no vectors and no scores", param="model")

    def cancel(self, number: int) -> None:
        self._decoder.cancel(number)

    def step(self) -> Sequence[frames.Answer | frames.Rejected]:
        return [] if self._decoder.idle else self._decoder.step()
