"""Which tokens may come next where an answer must follow a grammar: llguidance over one model.

What this decides: the tokens as llguidance sees them, how much a grammar may cost, and the words
in which a client reads that its schema cannot be followed. It samples nothing.

Theory of operation:

1. A grammar comes from a client, so compiling it is an attack until it ended. llguidance bounds
   its own work (`_bounds`) but for three things. It recurses, some kilobytes deep for each
   level of a schema that its references unroll: so it runs in a thread whose stack has room for
   every level that there is. It takes its time: the thread is given up after SECONDS. And
   `multipleOf` becomes an automaton as large as the number, and of several of them as large as
   their least common multiple: that is bounded first.
2. The first mask is computed with the grammar, so that a schema which nothing satisfies is told
   before an answer begins. Matchers are copies of what was compiled, and share what it learns.
3. llguidance lets a matcher that failed allow the end. Nobody may take that for an answer: each
   mask and each token is followed by a look for an error.
4. Where a grammar forces bytes, llguidance asks for their tokens and allows the first one alone,
   so answers are spelled as the model's tokenizer spells. A tokenizer that puts a space before
   every text would break this, and is asked with something in front (`_Vocabulary`).
5. What a grammar learns while answers are written is kept with it, up to 50,000 states of 1 to
   2 kB, and llguidance does not say how many it has. So few are kept: the last four, which take
   400 MB at the worst. A grammar that an answer follows lives until that answer ends.
"""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance._lib import LLParserLimits
from numpy.typing import NDArray

from meshnode_llama_cpp.model import Model
from p2p_mesh.errors import RequestError

MAX_SOURCE = 2**20
SECONDS = 2.0
"""For a grammar to compile; a mask keeps within it by the limits on its steps."""
MAX_LEVELS = 16_000
MAX_MULTIPLE = 10_000

_KEPT, _KEPT_SOURCE = 4, 2 * 2**20
_STACK, _STACK_PER_LEVEL = 16 * 2**20, 16 * 2**10  # a level was seen to take up to 8 KiB
_SPECIAL = b"\xff"  # what llguidance begins a token with that is no text
_LONGEST = 1000  # bytes of a token; llguidance's trie is 1,024 deep
_HEAD = 256  # characters that are tokenized well; of the others only their length matters
_LEAD = "\x02"

_LEVELS = re.compile(r"[{(\n]")
_MULTIPLE = re.compile(r'"multipleOf"\s*:\s*(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)')
_ALLOWED = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_BIAS = np.where(_ALLOWED == 1, np.float32(0), np.float32(-np.inf)).view("V32").ravel()
"""For each byte of a mask, what its eight tokens get."""

_COMPLEX = "it is too complex; fewer alternatives, shorter patterns or less nesting would help"
_WORDS = (
    (r"Unimplemented keys: \[(.*?)\]", r"the schema uses {0}, which is not supported"),
    (r"Resource '(.*?)' is not present", r'"$ref": "{0}" is no part of the schema'),
    (r"Pointer '(.*?)' does not exist", r'"$ref": "#{0}" points at nothing'),
    (r"Unknown format: (.*)", r'the format "{0}" is not supported'),
    (r"Invalid type: (.*)", r'there is no type "{0}"'),
    (r"Unsatisfiable schema: (.*?)(?: while processing .*)?$", "nothing satisfies it: {0}"),
    (
        r"schema too large|panic|too big|fuel|[Tt]oo many|items; max|TooComplex|regex is empty:",
        _COMPLEX,
    ),
    (r"NoExtension", "nothing satisfies it"),
    (r"recursion limit", "it is nested too deeply"),
)
"""What llguidance says, and what a client reads instead."""
_PLACE = re.compile(r'^(at )?\d+\(\d+\): |failed to \w+ (JSON schema|"%json"): ')


class Grammars:
    """Grammars for one model's vocabulary. For one thread, but for `prepare`."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._known: OrderedDict[str, _Compiled | str] = OrderedDict()
        self._vocabulary: _Vocabulary | None = None
        self._building = threading.Lock()
        self._late: threading.Thread | None = None

    def prepare(self) -> None:
        """Builds the tables of the vocabulary beside all else: a second for a large one, which
        the first answer with a grammar would otherwise take from all others.
        """
        threading.Thread(target=self._tables, daemon=True).start()

    def compile(self, source: str, *, param: str = "response_format") -> Matcher:
        """A matcher at the beginning. Raises RequestError for a grammar that cannot be followed."""
        found = self._known.pop(source, None) or self._try(source, param)
        self._keep(source, found)
        if isinstance(found, str):
            raise RequestError(f"{param} cannot be followed: {found}.", param=param)
        return Matcher(found, self._model, param, lambda: self._known.pop(source, None))

    def _keep(self, source: str, found: _Compiled | str) -> None:
        self._known[source] = found
        while len(self._known) > _KEPT or sum(map(len, self._known)) > _KEPT_SOURCE:
            self._known.popitem(last=False)

    def _try(self, source: str, param: str) -> _Compiled | str:
        """A grammar, or why there is none. Raises RequestError where another try may work."""
        if refusal := _refuse(source):
            return refusal
        compiled = _Compiled(self._tables(), source)
        if not self._run(compiled.run, len(_LEVELS.findall(source))):
            busy = f"{param}: the engine is busy with other schemas; try again later"
            raise RequestError(busy, param=param)
        if compiled.matcher is None:
            return f"it takes more than {SECONDS:g} seconds to compile; a simpler one would do"
        return compiled.error or compiled

    def _tables(self) -> _Vocabulary:
        with self._building:
            if self._vocabulary is None:
                self._vocabulary = _Vocabulary(self._model)
            return self._vocabulary

    def _run(self, work: Callable[[], None], levels: int) -> bool:
        """Gives it SECONDS, and nothing where there is no room. One thread at a time: what was
        given up may still be at work.
        """
        if self._late is not None:
            self._late.join(SECONDS)
        if self._late is not None and self._late.is_alive():
            return False
        self._late = _thread(work, _STACK + levels * _STACK_PER_LEVEL)
        if self._late is not None:
            self._late.join(SECONDS)
        return self._late is not None


class Matcher:
    """One answer and its grammar. Raises RequestError where the grammar fails: it became too
    complex on the way, or a token came that it did not allow.
    """

    def __init__(
        self, compiled: _Compiled, model: Model, param: str, failed: Callable[[], object]
    ) -> None:
        """`failed` is called before an error is raised: what it shares with others is suspect."""
        self._matcher = compiled.matcher.deep_copy()
        self._vocabulary, self._model = compiled.vocabulary, model
        self._param, self._failed = param, failed
        self._ended = False

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Sets those of the tokens that may not come now to minus infinity."""
        bias = self._vocabulary.ending
        if not self._ended:
            bias = self._vocabulary.bias(self._matcher)
            self._check()
        np.add(logits, bias, out=logits)

    def accept(self, token: int) -> None:
        """The token was sampled."""
        self._ended |= self._model.ends(token) and bool(self._matcher.is_accepting())
        if not self._ended:
            self._matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            self._failed()
            reason = _word(self._matcher.get_error())
            raise RequestError(
                f"{self._param} could not be followed to the end: {reason}.", param=self._param
            )


class _Vocabulary:
    """A model's tokens as llguidance wants them, and the buffers for its masks."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids = ()

    def __init__(self, model: Model) -> None:
        self._model = model
        ends = [token for token in range(model.token_count) if model.ends(token)]
        if not ends:
            raise RequestError(f"{model.name} has no token that ends an answer")
        self.eos_token_id = ends[0]
        self.tokens = [_bytes(model, token) for token in range(model.token_count)]
        self._lead = "" if self._spell(self._tokenize("x")) == b"x" else _LEAD
        self._lead_count = len(self._tokenize(self._lead))
        self.tokenizer = LLTokenizer(self, eos_token=ends)
        self._mask = np.empty((model.token_count + 31) // 32, np.uint32)
        self._spread = np.empty(self._mask.nbytes, "V32")
        self.ending = np.full(model.token_count, -np.inf, np.float32)
        self.ending[ends] = 0

    def bias(self, matcher: Any) -> NDArray[np.float32]:
        """Zero for each token that may come, minus infinity for the others; until the next one."""
        matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        np.take(_BIAS, self._mask.view(np.uint8), out=self._spread, mode="clip")
        return self._spread.view(np.float32)[: len(self.tokens)]

    def __call__(self, text: str) -> list[int]:
        """Tokens that spell this text exactly, the first of them as the model would."""
        head, rest = text[:_HEAD], text[_HEAD:]
        tokens = self._tokenize(self._lead + head)[self._lead_count :]
        if self._spell(tokens) != head.encode():
            tokens = self.tokenizer.greedy_tokenize(head)
        return tokens + (self.tokenizer.greedy_tokenize(rest) if rest else [])

    def _tokenize(self, text: str) -> list[int]:
        return self._model.tokenize(text, around=False, special=False) if text else []

    def _spell(self, tokens: Sequence[int]) -> bytes:
        return b"".join(self.tokens[token] for token in tokens)


class _Compiled:
    """A grammar at its beginning, or what is wrong with it."""

    def __init__(self, vocabulary: _Vocabulary, source: str) -> None:
        self.vocabulary, self._source = vocabulary, source
        self.matcher: Any = None
        self.error: str | None = None

    def run(self) -> None:
        matcher = LLMatcher(self.vocabulary.tokenizer, self._source, log_level=0, limits=_bounds())
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            self.error = _word(matcher.get_error())
        self.matcher = matcher


def _bounds() -> Any:
    """Of llguidance's work; the speeds are its own figures."""
    return LLParserLimits(
        max_items_in_row=20_000,
        step_max_items=500_000,  # 20,000 a millisecond
        step_lexer_fuel=1_000_000,  # 14,000 a millisecond
        max_lexer_states=50_000,  # of 1 to 2 kB
        verbose_errors=False,
    )


def _refuse(source: str) -> str | None:
    """Why that grammar is not even tried."""
    if len(source.encode(errors="surrogatepass")) > MAX_SOURCE:
        return f"it is larger than {MAX_SOURCE} bytes"
    if not source.isascii() and re.search("[\ud800-\udfff]", source):
        return "it holds half a character, a lone surrogate"
    if len(_LEVELS.findall(source)) > MAX_LEVELS:
        return f"it has more than {MAX_LEVELS} parts"
    if _multiple(source) > MAX_MULTIPLE:
        return f"the numbers of all its multipleOf have no common multiple up to {MAX_MULTIPLE}"
    return None


def _multiple(source: str) -> int:
    """The least common multiple of all `multipleOf`, counted in the largest unit that measures
    them all; any number above MAX_MULTIPLE for a larger one.
    """
    found = {number for number in _MULTIPLE.findall(source) if 0 < float(number) < math.inf}
    steps = [Fraction(number) for number in found]
    unit = math.lcm(*(step.denominator for step in steps))
    multiple = 1
    for step in steps:
        multiple = math.lcm(multiple, int(step * unit))
        if multiple > MAX_MULTIPLE:
            break
    return multiple


def _thread(run: Callable[[], None], stack: int) -> threading.Thread | None:
    before = threading.stack_size(stack)
    try:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
    except RuntimeError:
        return None  # no room for the stack
    finally:
        threading.stack_size(before)
    return thread


def _bytes(model: Model, token: int) -> bytes:
    """A token's text; marked where it is none, so that only its id names it."""
    piece = model.piece(token)
    if model.ends(token) or not piece or piece.startswith(_SPECIAL):
        return _SPECIAL + model.spelled(token)[:_LONGEST]
    return piece if len(piece) <= _LONGEST else b""


def _word(error: str) -> str:
    """An error of llguidance in a client's words, on one line."""
    first = re.split(r"\n\s*\d+ \| |\n<|<backtrace>", error)[0]
    for pattern, words in _WORDS:
        if found := re.search(pattern, first):
            return _line(words.format(*found.groups()))
    return _line(_PLACE.sub("", first))


def _line(text: str) -> str:
    return " ".join(text.split())[:300].rstrip(".")
