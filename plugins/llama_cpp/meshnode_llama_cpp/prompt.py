"""From what a client asked to the tokens that the model reads, and how its answer will be read.

The template writes a chat (template.py) in the way that it wants it (chat/habits.py); its text also
says how the model will write reasoning and calls (chat/format.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from meshnode_llama_cpp.chat import Parser, habits
from meshnode_llama_cpp.chat.format import FALLBACK, Calls, Format, tell
from meshnode_llama_cpp.chat.grammar import Wanted, grammar
from meshnode_llama_cpp.chat.harmony import Harmony
from meshnode_llama_cpp.chat.machine import Plain
from meshnode_llama_cpp.chat.marked import Marked
from meshnode_llama_cpp.chat.media import Media
from meshnode_llama_cpp.chat.messages import Way, typed, written
from meshnode_llama_cpp.chat.tools import check_schema, check_tools, introduced, shaped
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.template import CHATML, CHATML_END, Template
from p2p_mesh.core.records import (
    ChatPrompt,
    DetokenizeQuery,
    InferenceRequest,
    Text,
    TextPrompt,
    TokenizeQuery,
    TokenPrompt,
    Tokens,
    Tool,
)
from p2p_mesh.errors import ContextExceeded, RequestError

_SLICE = 4
"""Characters for each token of the context: what is tried first of a text that is longer."""
_QUERY = 4
"""Contexts that a text may fill whose tokens are only counted."""

Part = Any
"""Tokens (`list[int]`), or what a ReadMedia made of an image or a sound."""
ReadMedia = Callable[[str, Sequence[bytes]], Sequence[Part]]
"""The parts of a text with a marker for each of the media."""


@dataclass(frozen=True)
class Prompt:
    """What the model reads, and what it takes to read its answer."""

    parts: tuple[Part, ...]
    stops: tuple[str, ...] = ()
    parser: Callable[[], Parser] = Plain
    """Makes a parser for one choice; it knows how the prompt ends."""
    preserved: frozenset[str] = frozenset()
    """The control tokens that the parser wants to see, as they are written."""
    grammar: str | None = None
    """What the whole answer follows, in llguidance's Lark."""

    @property
    def tokens(self) -> list[int]:
        """All of it where there are no media."""
        return [token for part in self.parts if isinstance(part, list) for token in part]


@dataclass(frozen=True, slots=True)
class _Written:
    """A chat as the template wrote it."""

    text: str
    tools: tuple[Tool, ...]
    media: tuple[bytes, ...]


class Prompts:
    """Reads the prompts for one model."""

    def __init__(
        self,
        model: Model,
        context: int,
        *,
        read_media: ReadMedia | None = None,
        marker: str = "",
    ) -> None:
        """`marker`: what stands in a text for an image or a sound, of which there are none without
        `read_media`. Raises ModelError for a chat template that does not end.
        """
        self._model, self._context = model, context
        self._read_media, self._marker = read_media, marker if read_media else ""
        self._begin, self._end = model.written(model.begin), model.written(model.end)
        self._own = model.template
        source = CHATML if self._own is None else self._own
        self._template = Template(source, model=model.name, bos=self._begin, eos=self._end)
        self._template.probe()
        self._habits = habits.find(self._template.attempt, source)
        self._format = tell(source)
        self._specials: dict[str, int | None] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        if self._own is not None:
            return ()
        return (f"{self._model.name} has no chat template; ChatML is used",)

    def read(self, request: InferenceRequest) -> Prompt:
        """Raises RequestError for a prompt that is none, ContextExceeded for one that is too long.
        The tokens of media are not counted here.
        """
        if request.schema is not None:
            check_schema(request.schema, "response_format", "the schema")
        match request.prompt:
            case ChatPrompt() as chat:
                return self._chat(request, chat)
            case TextPrompt(text=text, suffix=""):
                tokens = self._tokenize(text, "prompt")
            case TextPrompt(text=text, suffix=suffix):
                tokens = self._gap(text, suffix)
            case TokenPrompt(tokens=given):
                tokens = self._check(list(given), "prompt")
        wanted = Wanted(schema=request.schema)
        form = Format("text", FALLBACK)
        return Prompt((tokens,), request.stop, grammar=grammar(form, wanted, self._special))

    def tokens(self, query: TokenizeQuery) -> Tokens:
        """Raises RequestError, also for a text of many more tokens than a prompt can have."""
        match query.prompt:
            case ChatPrompt() as chat:
                told = self._write(chat, query.asked_at)
                if told.media:
                    raise RequestError("images and sounds are not counted here", param="messages")
                text, param = told.text, "messages"
                text = self._without_ends(text) if query.add_special else text
            case TextPrompt(text=text):
                param = "prompt"
        self._refuse_far_too_long(text, param, _QUERY * self._context)
        tokens = self._model.tokenize(text, around=query.add_special, special=query.parse_special)
        pieces = tuple(map(self._model.spelled, tokens)) if query.with_pieces else ()
        return Tokens(tokens=tuple(tokens), pieces=pieces)

    def text(self, query: DetokenizeQuery) -> Text:
        """Raises RequestError for a token that the vocabulary does not have."""
        self._check_known(query.tokens, "tokens")
        data = b"".join(map(self._model.spelled, query.tokens))
        return Text(text=data.decode(errors="replace"))

    def _chat(self, request: InferenceRequest, chat: ChatPrompt) -> Prompt:
        if chat.tool_choice == "required" and not chat.tools:
            raise RequestError("tool_choice is required, and there are no tools", param="tools")
        told = self._write(chat, request.asked_at)
        form = replace(self._format, calls=self._calls)
        opened, closed = self._ends(told.text, form)
        single = not (chat.parallel_tool_calls and self._habits.parallel)
        wanted = Wanted(
            tools=told.tools,
            required=chat.tool_choice == "required",
            single=single,
            schema=request.schema,
            opened=opened,
            closed=closed,
        )

        def parser() -> Parser:
            if form.harmony:
                return Harmony(told.tools, single=single)
            return Marked(form, told.tools, opened=opened, closed=closed, single=single)

        stops = request.stop if self._own is not None else (*request.stop, CHATML_END)
        return Prompt(
            self._parts(told),
            stops,
            parser,
            form.marks(bool(told.tools)),
            grammar(form, wanted, self._special),
        )

    @property
    def _calls(self) -> Calls:
        """How calls are spelled: as we say, where the template does not say it."""
        known = self._habits.tools or self._habits.calls
        return self._format.calls if known else FALLBACK

    def _write(self, chat: ChatPrompt, asked_at: int) -> _Written:
        tools = chat.tools if chat.tool_choice != "none" else ()
        check_tools(tools)
        media = Media(self._marker)
        given = [dict(message) for message in chat.messages]
        shapes = [shaped(tool) for tool in tools]
        media.check_texts(given, shapes, chat.variables)
        said = introduced(tools, self._calls) if tools and not self._habits.tools else ""
        messages = written(given, self._habits, Way(self._calls, media, said))
        messages = typed(messages) if self._habits.typed else messages
        text = self._template.render(messages, shapes, asked_at=asked_at, variables=chat.variables)
        media.check_prompt(text)
        return _Written(text, tools, tuple(media.found))

    def _ends(self, text: str, form: Format) -> tuple[bool, bool]:
        """Whether a prompt ends within reasoning, and whether behind it."""
        if form.thought is None or form.harmony:
            return False, False
        end = text[-256:].rstrip()
        return end.endswith(form.thought.opens), end.endswith(form.thought.closes)

    def _parts(self, told: _Written) -> tuple[Part, ...]:
        text = self._without_ends(told.text)
        if not told.media:
            return (self._tokenize(text, "messages"),)
        assert self._read_media is not None
        self._refuse_far_too_long(text, "messages", self._context)
        parts = tuple(self._read_media(text, told.media))
        self._check(Prompt(parts).tokens, "messages")
        return parts

    def _special(self, text: str) -> int | None:
        """The control token that a text is, if it is one."""
        if text not in self._specials:
            tokens = self._model.tokenize(text, around=False, special=True)
            is_one = len(tokens) == 1 and self._model.is_control(tokens[0])
            self._specials[text] = tokens[0] if is_one else None
        return self._specials[text]

    def _gap(self, text: str, suffix: str) -> list[int]:
        """Before, after, and the place between: what such models were trained to see."""
        gap = self._model.gap
        if gap is None:
            raise RequestError(
                f"{self._model.name} was not trained to fill gaps; ask without a suffix",
                param="suffix",
            )
        self._refuse_far_too_long(text, "prompt", self._context)
        self._refuse_far_too_long(suffix, "suffix", self._context)
        before = self._model.tokenize(text, around=False, special=False)
        after = self._model.tokenize(suffix, around=False, special=False)
        begin = [self._model.begin] if self._model.adds_begin and self._begin else []
        return self._check([*begin, gap[0], *before, gap[1], *after, gap[2]], "prompt")

    def _without_ends(self, text: str) -> str:
        """The tokenizer adds what opens and closes a text; it is not there twice."""
        if self._model.adds_begin and self._begin:
            text = text.removeprefix(self._begin)
        if self._model.adds_end and self._end:
            text = text.removesuffix(self._end)
        return text

    def _tokenize(self, text: str, param: str) -> list[int]:
        self._refuse_far_too_long(text, param, self._context)
        return self._check(self._model.tokenize(text), param)

    def _refuse_far_too_long(self, text: str, param: str, most: int) -> None:
        """Tries the beginning of a long text first, and ever more of it: llama.cpp's tokenizers
        take time that grows with the square of some texts, and nobody else is answered meanwhile.
        """
        tried = _SLICE * self._context
        while tried < len(text):
            count = len(self._model.tokenize(text[:tried]))
            if count > most + _SLICE:  # the cut itself may cost a token or two
                raise ContextExceeded(
                    f"the prompt has more than {count} tokens, "
                    f"the model's context is {self._context}",
                    param=param,
                )
            tried *= 2

    def _check(self, tokens: list[int], param: str) -> list[int]:
        if not tokens:
            raise RequestError("the prompt is empty", param=param)
        self._check_known(tokens, param)
        if len(tokens) >= self._context:
            raise ContextExceeded(
                f"the prompt has {len(tokens)} tokens, the model's context is {self._context}",
                param=param,
            )
        return tokens

    def _check_known(self, tokens: Sequence[int], param: str) -> None:
        if tokens and max(tokens) >= self._model.token_count:
            raise RequestError(
                f"the prompt has token {max(tokens)}; "
                f"the model's vocabulary has {self._model.token_count}",
                param=param,
            )
