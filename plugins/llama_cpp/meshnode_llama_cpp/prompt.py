"""From what a client asked to the tokens that the model reads."""

from __future__ import annotations

from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.template import CHATML, CHATML_END, Template
from p2p_mesh.core.records import ChatPrompt, InferenceRequest, TextPrompt, TokenPrompt
from p2p_mesh.errors import RequestError

_SLICE = 4
"""Characters for each token of the context: what is tried first of a text that is longer."""


class Prompts:
    """Reads the prompts for one model."""

    def __init__(self, model: Model, context: int) -> None:
        """Raises ModelError for a chat template that does not end."""
        self._model, self._context = model, context
        self._begin, self._end = model.written(model.begin), model.written(model.end)
        self._own = model.template
        self._template = Template(
            CHATML if self._own is None else self._own,
            model=model.name,
            bos=self._begin,
            eos=self._end,
        )
        self._template.probe()

    @property
    def notes(self) -> tuple[str, ...]:
        if self._own is not None:
            return ()
        return (f"{self._model.name} has no chat template; ChatML is used",)

    def tokens(self, request: InferenceRequest) -> list[int]:
        """Raises RequestError for a prompt that is none, or too long."""
        match request.prompt:
            case ChatPrompt(messages=messages):
                text = self._template.render(messages, asked_at=request.asked_at)
                return self._tokenize(self._without_ends(text), "messages")
            case TextPrompt(text=text):
                return self._tokenize(text, "prompt")
            case TokenPrompt(tokens=tokens):
                return self._check(list(tokens), "prompt")

    def stops(self, request: InferenceRequest) -> tuple[str, ...]:
        """Where the answer ends: also at the end of a turn that the vocabulary does not know."""
        if self._own is None and isinstance(request.prompt, ChatPrompt):
            return (*request.stop, CHATML_END)
        return request.stop

    def _without_ends(self, text: str) -> str:
        """The tokenizer adds what opens and closes a text; it is not there twice."""
        if self._model.adds_begin and self._begin:
            text = text.removeprefix(self._begin)
        if self._model.adds_end and self._end:
            text = text.removesuffix(self._end)
        return text

    def _tokenize(self, text: str, param: str) -> list[int]:
        self._refuse_far_too_long(text, param)
        return self._check(self._model.tokenize(text), param)

    def _refuse_far_too_long(self, text: str, param: str) -> None:
        """Tries the beginning of a long text first, and ever more of it: llama.cpp's tokenizers
        take time that grows with the square of some texts, and nobody else is answered meanwhile.
        """
        tried = _SLICE * self._context
        while tried < len(text):
            count = len(self._model.tokenize(text[:tried]))
            if count > self._context + _SLICE:  # the cut itself may cost a token or two
                raise RequestError(
                    f"the prompt has more than {count} tokens, "
                    f"the model's context is {self._context}",
                    param=param,
                )
            tried *= 2

    def _check(self, tokens: list[int], param: str) -> list[int]:
        if not tokens:
            raise RequestError("the prompt is empty", param=param)
        if max(tokens) >= self._model.token_count:
            raise RequestError(
                f"the prompt has token {max(tokens)}; "
                f"the model's vocabulary has {self._model.token_count}",
                param=param,
            )
        if len(tokens) >= self._context:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens, the model's context is {self._context}",
                param=param,
            )
        return tokens
