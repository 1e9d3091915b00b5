"""A loaded model: its weights, its vocabulary, and what its file says about itself."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

from meshnode_llama_cpp.library import L, complaint
from meshnode_llama_cpp.memory import BITS, gpu_layers
from p2p_mesh.core.records import KvType
from p2p_mesh.errors import ModelError

Part = Literal["whole", "vocabulary", "layers"]
"""What of a model is loaded: all; no weights; or weights, with or without a vocabulary."""

LOAD_MODE_MMAP = 1  # LLAMA_LOAD_MODE_MMAP
_NO_VOCABULARY = 0  # LLAMA_VOCAB_TYPE_NONE


class Model:
    def __init__(
        self,
        path: str,
        *,
        name: str,
        progress: Callable[[float], None],
        gpu_layers: int = 0,
        part: Part = "whole",
    ) -> None:
        """`gpu_layers`: how many layers GPUs compute; -1: all. Raises ModelError if llama.cpp
        refuses the file; a worse file ends the process.
        """
        self.name = name
        params = L.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.vocab_only = part == "vocabulary"
        params.progress_callback = L.llama_progress_callback(_watch(progress))
        self.handle = self._load(path, params)
        if not self.handle:
            raise ModelError(f"llama.cpp does not load {name}: {complaint()}")
        self._vocabulary = L.llama_model_get_vocab(self.handle)
        if part != "layers" and L.llama_vocab_type(self._vocabulary) == _NO_VOCABULARY:
            raise ModelError(f"{self.name} has no vocabulary")
        self.token_count: int = L.llama_vocab_n_tokens(self._vocabulary)
        self._pieces: dict[int, bytes] = {}
        self._spelled: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}

    def _load(self, path: str, params: Any) -> Any:
        """llama.cpp's own handle; None where it refuses the file."""
        return L.llama_model_load_from_file(path.encode(), params)

    def check_writes(self) -> None:
        """Raises ModelError for a model that does not write token by token."""
        if L.llama_model_has_encoder(self.handle) or not L.llama_model_has_decoder(self.handle):
            raise ModelError(f"{self.name} has an encoder; only decoders are served")
        if L.llama_model_is_diffusion(self.handle):
            raise ModelError(f"{self.name} is a diffusion model; it does not write in order")

    @property
    def is_recurrent(self) -> bool:
        """Whether some of its memory is a state, which cannot go back."""
        return bool(L.llama_model_is_recurrent(self.handle) or L.llama_model_is_hybrid(self.handle))

    @property
    def window(self) -> int:
        """Tokens of the sliding window that some of its layers have; 0: none."""
        return int(L.llama_model_n_swa(self.handle))

    @property
    def template(self) -> str | None:
        source: bytes | None = L.llama_model_chat_template(self.handle, None)
        return source.decode(errors="replace") if source else None

    @property
    def begin(self) -> int:
        """The token that opens a text; -1 if there is none."""
        token: int = L.llama_vocab_bos(self._vocabulary)
        return token

    @property
    def end(self) -> int:
        token: int = L.llama_vocab_eos(self._vocabulary)
        return token

    @property
    def adds_begin(self) -> bool:
        return bool(L.llama_vocab_get_add_bos(self._vocabulary))

    @property
    def adds_end(self) -> bool:
        return bool(L.llama_vocab_get_add_eos(self._vocabulary))

    def ends(self, token: int) -> bool:
        """Whether that token ends an answer."""
        known = self._ends.get(token)
        if known is None:
            known = self._ends[token] = bool(L.llama_vocab_is_eog(self._vocabulary, token))
        return known

    def piece(self, token: int) -> bytes:
        """What a token adds to an answer; nothing, if it is a control token."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._spell(token, special=False)
        return piece

    def spelled(self, token: int) -> bytes:
        """A token as a template writes it, control tokens too; empty for -1."""
        spelled = self._spelled.get(token)
        if spelled is None:
            spelled = self._spell(token, special=True) if token >= 0 else b""
            self._spelled[token] = spelled
        return spelled

    def written(self, token: int) -> str:
        """The same as text."""
        return self.spelled(token).decode(errors="replace")

    @property
    def gap(self) -> tuple[int, int, int] | None:
        """The tokens before a prefix, a suffix and the middle that is to be written between them;
        None for a model that was not trained to fill gaps.
        """
        found = (
            L.llama_vocab_fim_pre(self._vocabulary),
            L.llama_vocab_fim_suf(self._vocabulary),
            L.llama_vocab_fim_mid(self._vocabulary),
        )
        return None if min(found) < 0 else found

    def is_control(self, token: int) -> bool:
        """Whether a token is no text: a mark of the template's, mostly."""
        return bool(L.llama_vocab_is_control(self._vocabulary, token))

    def tokenize(self, text: str, *, around: bool = True, special: bool = True) -> list[int]:
        """The tokens of a text; `around`: with those that the model puts around one; `special`:
        special tokens are recognised wherever they are written, also in what a client wrote, as
        llama-server does.
        """
        data = text.encode(errors="replace")
        room = len(data) // 3 + 16
        while True:
            tokens = (ctypes.c_int32 * room)()
            count: int = L.llama_tokenize(
                self._vocabulary, data, len(data), tokens, room, around, special
            )
            if count >= 0:
                return tokens[:count]
            room = -count

    def _spell(self, token: int, *, special: bool) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count: int = L.llama_token_to_piece(self._vocabulary, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count


def gpu_layers_that_fit(path: str, *, cells: int, kv_type: KvType, free: Sequence[int]) -> int:
    """How many layers of the model in a file go to GPUs with so many bytes free, with a KV cache
    of so many cells. The file's header is read, and no weights.
    """
    params = L.llama_model_default_params()
    params.vocab_only = True
    handle = L.llama_model_load_from_file(path.encode(), params)
    if not handle:
        return 0  # loading it in earnest will say why
    layers = max(1, L.llama_model_n_layer(handle))
    heads = max(1, L.llama_model_n_head(handle))
    numbers = 2 * L.llama_model_n_embd(handle) * L.llama_model_n_head_kv(handle) // heads
    L.llama_model_free(handle)
    each = os.stat(path).st_size // (layers + 1)
    kept = int(numbers * cells * BITS[kv_type] / 8)
    return gpu_layers(
        layers, layer_bytes=each, kv_bytes_per_layer=kept, output_bytes=each, free=free
    )


def _watch(progress: Callable[[float], None]) -> Callable[[float, object], bool]:
    """llama.cpp's callback, calling ours for each whole per cent."""
    shown = -1

    def watch(share: float, _data: object) -> bool:
        nonlocal shown
        if int(share * 100) > shown:
            shown = int(share * 100)
            progress(min(1.0, share))
        return True

    return watch
