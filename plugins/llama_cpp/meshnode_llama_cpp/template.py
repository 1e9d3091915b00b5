"""Chat templates: programs that come with a model, run on messages that come from clients.

Neither is trusted. A template runs in jinja2's immutable sandbox, which keeps it from the rest of
the process, and within limits:

1. Time: an alarm in the main thread raises between two instructions of Python.
2. Memory: operations that make large values from small ones are checked beforehand, what is
   written out is counted, and for the rest the process may grow by so much and no more.
3. What holds the interpreter itself gets no alarm. A timer that needs no interpreter ends the
   whole process then, and leaves `HELD` as the last word (faulthandler).

Templates are compiled within the same limits: jinja2 folds constants then.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import resource
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.parser import Parser

from p2p_mesh.errors import ModelError, RequestError

HELD = "Timeout (0:00:05)!"
"""What faulthandler says before it ends the process."""
_HELD_SECONDS = 5
_GROWTH = 512 * 2**20
_BIT = 64
"""Characters that a bit of a number counts for: numbers are slow long before they are large."""

CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
"""For a model that has no template: what llama-server takes then."""
CHATML_END = "<|im_end|>"

PROBE: tuple[dict[str, Any], ...] = ({"role": "user", "content": "Hello"},)


Messages = Sequence[dict[str, Any]]

_RESERVED = frozenset(
    {"messages", "tools", "add_generation_prompt", "strftime_now", "bos_token", "eos_token",
     "raise_exception", "self", "loop", "caller", "varargs", "kwargs"}
)  # fmt: skip


class _TimeUp(BaseException):
    """Not an Exception: nothing that a template calls may swallow it."""


class _Raised(jinja2.TemplateError):
    """The template called `raise_exception`: it does not take these messages."""


class _TooMuch(Exception):
    """A value that is larger than a prompt may be."""


_BEYOND = (_TimeUp, _TooMuch, MemoryError)


@dataclass(frozen=True, slots=True)
class Bounds:
    seconds: float = 1.0
    characters: int = 8 * 2**20


class Template:
    """The chat template of one model. Belongs to the main thread, whose alarm it uses."""

    def __init__(
        self, source: str, *, model: str, bos: str = "", eos: str = "", bounds: Bounds | None = None
    ) -> None:
        self._model = model
        self._bounds = bounds or Bounds()
        self._no_tools: Messages | None = None
        self._open = {"documents": None, "enable_thinking": True}
        self._fixed = {"bos_token": bos, "eos_token": eos}
        try:
            with _limits(self._bounds.seconds):
                self._template = _Environment(self._bounds.characters).from_string(source)
        except _BEYOND as error:
            raise ModelError(self._word(error)) from None
        except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
            raise ModelError(f"the chat template of {model} is broken: {error}"[:500]) from error

    def probe(self) -> None:
        """Raises ModelError if the template goes beyond its limits even on the simplest messages.
        One that refuses them, or fails, is asked again with each request.
        """
        if not self._works():
            self._no_tools = []  # some templates go through the tools without asking
            self._no_tools = [] if self._works() else None

    def _works(self) -> bool:
        try:
            self._write(PROBE, None, {}, 0)
        except _BEYOND as error:
            raise ModelError(self._word(error)) from None
        except Exception:  # noqa: BLE001  a program of somebody else, it may raise any
            return False
        return True

    def attempt(self, messages: Messages, tools: Messages | None) -> str | None:
        """The prompt; None if the template refuses, fails, or goes beyond its limits."""
        try:
            return self._write(messages, tools, {}, 0)
        except (*_BEYOND, Exception):  # noqa: BLE001  a program of somebody else, it may raise any
            return None

    def render(
        self,
        messages: Messages,
        tools: Messages | None = None,
        *,
        asked_at: int,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. Raises RequestError for messages that the template does not take, and for
        variables that have a meaning already.
        """
        variables = variables or {}
        if shadowed := sorted(_RESERVED & variables.keys()):
            raise RequestError(
                f"{shadowed[0]} is no variable of the template's own; choose another name",
                param="chat_template_kwargs",
            )
        try:
            return self._write(messages, tools, variables, asked_at)
        except (*_BEYOND, Exception) as error:
            raise RequestError(self._word(error), param="messages") from error

    def _write(
        self,
        messages: Messages,
        tools: Messages | None,
        variables: Mapping[str, Any],
        asked_at: int,
    ) -> str:
        def strftime_now(pattern: str) -> str:
            return datetime.fromtimestamp(asked_at, UTC).strftime(pattern)

        given = {
            "messages": list(messages),
            "tools": list(tools) if tools else self._no_tools,
            "add_generation_prompt": True,
            "strftime_now": strftime_now,
        }
        names = self._open | dict(variables) | self._fixed | given
        written, parts = 0, []
        with _limits(self._bounds.seconds):
            for part in self._template.generate(names):
                written += len(part)
                if written > self._bounds.characters:
                    raise _TooMuch
                parts.append(part)
        return "".join(parts)

    def _word(self, error: BaseException) -> str:
        name = f"the chat template of {self._model}"
        match error:
            case _TimeUp():
                return f"{name} did not end within {self._bounds.seconds:g} s"
            case _TooMuch() | MemoryError():
                return f"{name} makes values of more than {self._bounds.characters} characters"
            case _Raised():
                return f"{name} does not take these messages: {error}"
        return f"{name} fails on these messages: {type(error).__name__}: {error}"[:500]


class _Generator(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """`a ~ b`, which jinja2 joins without asking the sandbox."""
        self.write("environment.concatenate((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, by which training tools find the assistant's part: only its body."""

    tags = {"generation"}  # noqa: RUF012  as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """As Hugging Face's tools set jinja2 up, for whom these templates are written."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    code_generator_class = _Generator

    def __init__(self, characters: int) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        self._characters = characters
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if _size(operator, left, right) > self._characters:
            raise _TooMuch
        result = super().call_binop(context, operator, left, right)
        if _length(result) > self._characters:
            raise _TooMuch
        return result

    def concatenate(self, parts: Sequence[Any]) -> str:
        texts = [str(part) for part in parts]
        if sum(map(len, texts)) > self._characters:
            raise _TooMuch
        return "".join(texts)


def _size(operator: str, left: Any, right: Any) -> int:
    """How large the result of an operation will be, about, in characters or elements."""
    match operator:
        case "**" if isinstance(left, int) and isinstance(right, int):
            return left.bit_length() * abs(right) * _BIT
        case "*" if isinstance(left, int) and isinstance(right, int):
            return (left.bit_length() + right.bit_length()) * _BIT
        case "*" if isinstance(right, int):
            return _length(left) * right
        case "*" if isinstance(left, int):
            return left * _length(right)
        case "+":
            return _length(left) + _length(right)
    return 0  # of `%` only the result tells; a width in the pattern meets the memory limit


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: jinja2's own filter would escape what HTML cannot hold."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_listed,
    )


def _listed(value: Any) -> list[Any]:
    """What filters such as `map` give."""
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


def _raise(message: str) -> None:
    raise _Raised(str(message)[:300])


@contextlib.contextmanager
def _limits(seconds: float) -> Iterator[None]:
    """The three limits of this module's docstring, while somebody else's program runs."""
    ended = False

    def alarm(_signal: int, _frame: FrameType | None) -> None:
        if not ended:
            raise _TimeUp

    before = signal.signal(signal.SIGALRM, alarm)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    faulthandler.dump_traceback_later(_HELD_SECONDS, exit=True, file=2)
    try:
        _limit_growth(soft, hard)
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)  # again, if the first was swallowed
        yield
    finally:
        ended = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _limit_growth(soft: int, hard: int) -> None:
    used = _data_bytes()
    if used is not None:
        limit = used + _GROWTH
        limit = limit if soft == resource.RLIM_INFINITY else min(limit, soft)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _data_bytes() -> int | None:
    """What RLIMIT_DATA counts of this process; None where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[5]) * resource.getpagesize()
    except OSError:
        return None
