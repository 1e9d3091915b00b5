"""Vectors and scores: models that read a text and write none.

Several texts share a call as long as they are short, each a sequence of its own that sees no
other. A text that a model must see as a whole is read in one call; how long it may be is settled
when the model is loaded, and with it the memory.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from meshnode_llama_cpp.context import Rows
from meshnode_llama_cpp.library import L, complaint
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.roles import UNSPECIFIED, Role, pooling_of, role, splits
from p2p_mesh.core.records import EmbedQuery, RerankQuery, Scores, TokenId, Vectors
from p2p_mesh.errors import ContextExceeded, ModelError, RequestError

COMPANY = 48
"""Tokens of a call in which texts share it. So many rows a CPU computes one by one, so that a
vector is the same alone and in company, bit for bit; at 64 and more, company moved those of a
random Q8_0 model by 0.003. Nor is more faster there: 48, 128 and 512 took the same time.
"""
GPU_COMPANY = 2048
"""The same where a GPU computes: there company is what makes it fast."""
MOST_TEXTS = 32
"""Texts of one call."""
_CHUNK = 256
"""Tokens of a text that are read at a time, where it may be read in parts."""
_TEMPLATE = "rerank"
_LONGEST_KEY = 256


class Embedder:
    """Vectors and scores of one model."""

    def __init__(self, model: Model, *, context: int, threads: int, company: int = COMPANY) -> None:
        """`context`: tokens of the longest text; `company`: tokens of a call in which texts share
        it. Raises ModelError where the model gives neither vectors nor scores.
        """
        self._role = role_of(model)
        if self._role == "generate":
            raise ModelError(f"{model.name} writes; it gives no vectors and no scores")
        self._model, self._company = model, company
        self._vocabulary = L.llama_model_get_vocab(model.handle)
        self._limit: int = min(context, L.llama_model_n_ctx_train(model.handle) or context)
        self._rows = Rows(max(self._limit, company))
        self._handle = _open(model, rows=self._rows.most, threads=threads)
        self._memory = L.llama_get_memory(self._handle)
        ranks = self._role == "rerank"
        count = L.llama_model_n_cls_out if ranks else L.llama_model_n_embd_out
        self._width: int = count(model.handle)
        self._read([[max(0, model.begin)]])  # brings the weights in, and shows what cannot be done

    @property
    def capabilities(self) -> tuple[str, ...]:
        return ("rerank",) if self._role == "rerank" else ("embed",)

    def answer(
        self, query: EmbedQuery | RerankQuery, cancelled: Callable[[], bool] = lambda: False
    ) -> Vectors | Scores:
        """`cancelled` is asked before each call. Raises RequestError for what the model does not
        do, and once cancelled; ContextExceeded for a text that is too long.
        """
        if isinstance(query, EmbedQuery):
            return self._embed(query, cancelled)
        return self._rerank(query, cancelled)

    def _embed(self, query: EmbedQuery, cancelled: Callable[[], bool]) -> Vectors:
        if self._role != "embed":
            raise RequestError(
                f"{self._model.name} ranks texts; it gives no vectors", param="model"
            )
        texts = [self._tokens(text, place) for place, text in enumerate(query.inputs)]
        found = self._pooled(texts, cancelled)
        return Vectors(vectors=tuple(map(_normal, found)), prompt_tokens=sum(map(len, texts)))

    def _rerank(self, query: RerankQuery, cancelled: Callable[[], bool]) -> Scores:
        if self._role != "rerank":
            raise RequestError(f"{self._model.name} gives vectors; it does not rank", param="model")
        texts = [self._pair(query.query, document, place)
                 for place, document in enumerate(query.documents)]  # fmt: skip
        found = self._pooled(texts, cancelled)
        # Of several classes the first is "yes".
        scores = tuple(float(classes[0]) for classes in found)
        return Scores(scores=scores, prompt_tokens=sum(map(len, texts)))

    def _tokens(self, text: str | tuple[TokenId, ...], place: int) -> list[int]:
        if isinstance(text, str):
            tokens = self._model.tokenize(text)
        else:
            tokens = list(text)
            if max(tokens, default=0) >= self._model.token_count:
                raise RequestError(
                    f"input {place} has the token {max(tokens)}; {self._model.name} has "
                    f"{self._model.token_count}, from 0",
                    param="input",
                )
        return self._checked(tokens, f"input {place}", "input")

    def _pair(self, query: str, document: str, place: int) -> list[int]:
        template = L.llama_model_chat_template(self._model.handle, _TEMPLATE.encode())
        if template:
            text = fill(template.decode(errors="replace"), query, document)
            tokens = self._model.tokenize(text, around=False)
        else:
            parts = (self._model.tokenize(text, around=False, special=False)
                     for text in (query, document))  # fmt: skip
            tokens = self._joined(*parts)
        return self._checked(tokens, f"the query with document {place}", "documents")

    def _joined(self, query: list[int], document: list[int]) -> list[int]:
        """As cross-encoders are trained: begin, query, end, separator, document, end, of which
        the vocabulary says which it has. Where it has no end, the separator ends the pair.
        """
        vocabulary = self._vocabulary
        begin = [self._model.begin] if self._model.adds_begin else []
        end = [self._model.end] if self._model.adds_end and self._model.end >= 0 else []
        separator = [L.llama_vocab_sep(vocabulary)] if L.llama_vocab_get_add_sep(vocabulary) else []
        return [*begin, *query, *end, *separator, *document, *(end or separator)]

    def _checked(self, tokens: list[int], what: str, param: str) -> list[int]:
        if not tokens:
            raise RequestError(f"{what} is empty", param=param)
        if len(tokens) > self._limit:
            raise ContextExceeded(
                f"{what} has {len(tokens)} tokens; {self._model.name} reads {self._limit} at most. "
                "Cut it into pieces.",
                param=param,
            )
        return tokens

    def _pooled(
        self, texts: list[list[int]], cancelled: Callable[[], bool]
    ) -> list[NDArray[np.float32]]:
        """What the model makes of each text, in their order."""
        found: dict[int, NDArray[np.float32]] = {}
        for places in calls([len(text) for text in texts], self._company):
            if cancelled():
                raise RequestError("the query was cancelled")
            found |= zip(places, self._read([texts[place] for place in places]), strict=True)
        return [found[place] for place in range(len(texts))]

    def _read(self, texts: Sequence[list[int]]) -> list[NDArray[np.float32]]:
        """One call. RuntimeError ends the process: nothing here is known to be whole."""
        self._rows.clear()
        for sequence, tokens in enumerate(texts):
            self._rows.add(sequence, 0, tokens, outputs=len(tokens))
        if self._memory:
            L.llama_memory_clear(self._memory, False)
        status = L.llama_decode(self._handle, self._rows.batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        L.llama_synchronize(self._handle)
        return [self._pooled_of(sequence) for sequence in range(len(texts))]

    def _pooled_of(self, sequence: int) -> NDArray[np.float32]:
        pointer = L.llama_get_embeddings_seq(self._handle, sequence)
        found = np.ctypeslib.as_array(pointer, (self._width,)).copy()
        if not np.isfinite(found).all():
            raise RequestError(f"{self._model.name} computes no finite numbers for that text")
        return found


def role_of(model: Model) -> Role:
    """What a loaded model is for. Raises ModelError where it is for nothing that is served."""
    return role(*_pooling(model))


def calls(lengths: Sequence[int], company: int) -> Iterator[list[int]]:
    """Which texts are read in one call, by their places: those of a like length together, and a
    long one alone.
    """
    call: list[int] = []
    total = 0
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if call and (total + lengths[place] > company or len(call) == MOST_TEXTS):
            yield call
            call, total = [], 0
        call.append(place)
        total += lengths[place]
    if call:
        yield call


def fill(template: str, query: str, document: str) -> str:
    """A reranker's template, in one pass: what a query quotes is no place to fill."""
    values = {"{query}": query, "{document}": document}
    return re.sub(r"\{query\}|\{document\}", lambda found: values[found[0]], template)


def _normal(vector: NDArray[np.float32]) -> bytes:
    """A vector of length one, as it travels; one of nothing but zeros stays."""
    length = float(np.sqrt(np.square(vector, dtype=np.float64).sum()))
    return (vector / (length or 1.0)).astype("<f4").tobytes()


def _open(model: Model, *, rows: int, threads: int) -> object:
    params = L.llama_context_default_params()
    params.n_ctx = params.n_batch = rows
    params.n_ubatch = rows if _is_whole(model) else min(rows, _CHUNK)
    params.n_seq_max = MOST_TEXTS
    params.n_outputs_max = rows
    params.n_threads = params.n_threads_batch = threads
    params.embeddings = True
    params.pooling_type = pooling_of(*_pooling(model))
    params.kv_unified = True
    params.no_perf = True
    handle: object = L.llama_init_from_model(model.handle, params)
    if not handle:
        raise ModelError(f"llama.cpp makes no context of {rows} for {model.name}: {complaint()}")
    return handle


def _is_whole(model: Model) -> bool:
    """Whether a text must be read in one call."""
    architecture, pooling = _pooling(model)
    causal = _metadata(model, f"{architecture}.attention.causal") != "false"
    return not splits(architecture, pooling, causal=causal)


def _pooling(model: Model) -> tuple[str, int]:
    architecture = _metadata(model, "general.architecture") or ""
    said = _metadata(model, f"{architecture}.pooling_type")
    return architecture, int(said) if said and said.isdecimal() else UNSPECIFIED


def _metadata(model: Model, key: str) -> str | None:
    """A value of the file's header, as llama.cpp writes it; None where it is missing."""
    buffer = ctypes.create_string_buffer(_LONGEST_KEY)
    size = L.llama_model_meta_val_str(model.handle, key.encode(), buffer, _LONGEST_KEY)
    return buffer.value.decode(errors="replace") if size >= 0 else None
