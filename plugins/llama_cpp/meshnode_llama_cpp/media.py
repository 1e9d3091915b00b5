"""Images and sounds: read beside a prompt's text, encoded, and fed to the model as rows.

A projector is a GGUF of its own (an `mmproj`) that turns a medium into rows of the model's width.
libmtmd does the work; what a client sent comes to it only through `formats`, and it never starts
ffmpeg, to which it would give all that it cannot decode itself. Encoding is slow, and a chat asks
about one image for many turns: encodings are kept, the latest used of them, up to a limit.
"""

from __future__ import annotations

import ctypes
import secrets
import weakref
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import llama_cpp.mtmd_cpp as M

from meshnode_llama_cpp.chat.media import MAX_MEDIA
from meshnode_llama_cpp.formats import Checked, Sense, check
from meshnode_llama_cpp.library import L, complaint, log
from meshnode_llama_cpp.memory import ENCODINGS
from meshnode_llama_cpp.model import Model
from p2p_mesh.errors import ModelError, RequestError

MAX_DECODED = 256 * 2**20
"""Bytes of them all when decoded: they are in memory together."""
_NO_PROGRAM = b"/dev/null"  # no folder, so that no ffmpeg is found in it
_DIGEST = 16
_NO_ROOM = 1  # of llama_decode


class Chunk:
    """A medium as libmtmd has scaled and cut it. Freed with this object."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        weakref.finalize(self, M.mtmd_input_chunk_free, handle).atexit = False


@dataclass(frozen=True, slots=True)
class Medium:
    """One image or sound, or a part of one, ready to be read by the model."""

    digest: bytes
    """16 bytes, equal for equal content."""
    rows: int
    """Cells of the KV cache that it takes."""
    positions: int
    """Positions that it takes; fewer than rows where those go both ways through an image."""
    whole: bool
    """Whether its rows see one another, and must be computed in one call."""
    chunk: Chunk = field(repr=False, compare=False)


class Projector:
    """What lets a model see or hear."""

    def __init__(self, path: str, model: Model, *, threads: int, offload: bool) -> None:
        """Raises ModelError for a file that is no projector, or not one for this model."""
        M.mtmd_helper_log_set(log, None)
        senses = M.mtmd_get_cap_from_file(path.encode())
        if not (senses.inp_vision or senses.inp_audio):
            raise ModelError(
                f"libmtmd finds no encoder of images or sounds in {path}: {complaint()}"
            )
        self._name = model.name
        self.marker = f"<|medium {secrets.token_hex(16)}|>"
        """Stands for a medium in a text. Random, so that nobody can write it."""
        self._handle = M.mtmd_init_from_file(
            path.encode(), model.handle, self._params(threads=threads, offload=offload)
        )
        if not self._handle:
            reason = " ".join(complaint().split())
            raise ModelError(f"{path} is no projector for {model.name}: {reason}")
        weakref.finalize(self, M.mtmd_free, self._handle).atexit = False
        self.vision = bool(M.mtmd_support_vision(self._handle))
        self.audio = bool(M.mtmd_support_audio(self._handle))
        self._width: int = L.llama_model_n_embd_inp(model.handle)
        self._options = M.mtmd_helper_init_opt_default()
        self._options.video_params.ffmpeg_bin_dir = _NO_PROGRAM
        self._kept: OrderedDict[bytes, Any] = OrderedDict()

    def _params(self, *, threads: int, offload: bool) -> Any:
        params = M.mtmd_context_params_default()
        params.use_gpu = offload
        params.n_threads = threads
        params.print_timings = False
        params.media_marker = self.marker.encode()
        return params

    def read(
        self, text: str, media: Sequence[bytes], *, around: bool = True
    ) -> list[list[int] | Medium]:
        """A prompt's tokens and, where the marker stands, its media, in order; `around` as in
        `Model.tokenize`. Raises RequestError for media that cannot be read, or not by this model.
        """
        self._count(text, len(media))
        checked = self._checked(media)
        bitmaps: list[Any] = []
        try:
            for number, one in enumerate(checked):
                bitmaps.append(self._decode(one))
                M.mtmd_bitmap_set_id(bitmaps[-1], str(number).encode())
            return self._parts(text, bitmaps, [_digest(data) for data in media], around=around)
        finally:
            for bitmap in bitmaps:
                M.mtmd_bitmap_free(bitmap)

    def feed(self, medium: Medium, context: Any, *, slot: int, position: int, rows: int) -> int:
        """Encodes a medium and computes it into a sequence, at most so many rows a call; returns
        the position after it. Raises RequestError where there is no room for it, and then the
        sequence may hold some of its rows; RuntimeError ends the process.
        """
        if medium.whole:
            rows = _one_call(medium, context)
        end = L.llama_pos()
        status = M.mtmd_helper_decode_image_chunk(
            self._handle, context, medium.chunk.handle, self._encoded(medium), position, slot,
            rows, ctypes.byref(end), M.mtmd_helper_post_decode_callback(), None,
        )  # fmt: skip
        if status == _NO_ROOM:
            complaint()  # it is told here, and nowhere else
            raise _refusal(f"there is no room for the {medium.rows} rows of one")
        if status != 0:
            raise RuntimeError(f"libmtmd could not compute a medium: {status}, {complaint()}")
        return int(end.value)

    def _count(self, text: str, count: int) -> None:
        if count > MAX_MEDIA:
            raise _refusal(f"there are {count}, the limit is {MAX_MEDIA}")
        if text.count(self.marker) != count:
            raise _refusal("the model's chat template does not show each of them once")

    def _checked(self, media: Sequence[bytes]) -> list[Checked]:
        found = [check(data) for data in media]
        for one in found:
            if not self._senses(one.sense):
                raise _refusal(f"{self._name} reads no {one.sense}s")
        if (total := sum(one.decoded for one in found)) > MAX_DECODED:
            raise _refusal(f"they take {total:,} bytes when decoded, the limit is {MAX_DECODED:,}")
        return found

    def _senses(self, sense: Sense) -> bool:
        return self.vision if sense == "image" else self.audio

    def _decode(self, checked: Checked) -> Any:
        data = ctypes.cast(ctypes.c_char_p(checked.data), ctypes.POINTER(ctypes.c_uint8))
        bitmap = M.mtmd_helper_bitmap_init_from_buf_wrapper(
            self._handle, data, len(checked.data), False, self._options
        ).bitmap
        if not bitmap:
            complaint()  # which is the client's
            raise _refusal(f"the {checked.sense} is broken")
        return bitmap

    def _parts(
        self, text: str, bitmaps: Sequence[Any], digests: Sequence[bytes], *, around: bool
    ) -> list[list[int] | Medium]:
        data = text.encode(errors="replace")
        given = M.mtmd_input_text(data, len(data), around, True)
        chunks = M.mtmd_input_chunks_init()
        try:
            status = M.mtmd_tokenize(
                self._handle, chunks, ctypes.byref(given),
                (ctypes.c_void_p * len(bitmaps))(*bitmaps), len(bitmaps),
            )  # fmt: skip
            if status != 0:
                raise _refusal(f"libmtmd refuses them: {complaint()}")
            found = [M.mtmd_input_chunks_get(chunks, number)
                     for number in range(M.mtmd_input_chunks_size(chunks))]  # fmt: skip
            return self._taken(found, digests)
        finally:
            M.mtmd_input_chunks_free(chunks)

    def _taken(self, chunks: Sequence[Any], digests: Sequence[bytes]) -> list[list[int] | Medium]:
        """A medium may be of many parts: tiles, or half minutes."""
        seen: Counter[int] = Counter()
        parts: list[list[int] | Medium] = []
        for chunk in chunks:
            if M.mtmd_input_chunk_get_type(chunk) == M.MTMD_INPUT_CHUNK_TYPE_TEXT:
                parts.append(_tokens(chunk))
                continue
            number = int(M.mtmd_input_chunk_get_id(chunk))
            parts.append(self._medium(chunk, digests[number], seen[number]))
            seen[number] += 1
        return parts

    def _medium(self, chunk: Any, digest: bytes, part: int) -> Medium:
        rows: int = M.mtmd_input_chunk_get_n_tokens(chunk)
        positions: int = M.mtmd_input_chunk_get_n_pos(chunk)
        whole = bool(M.mtmd_decode_use_non_causal(self._handle, chunk))
        return Medium(
            # A family may cut the same medium otherwise where it stands elsewhere.
            digest=_digest(digest, b"%d %d %d" % (part, rows, positions)),
            rows=rows,
            positions=positions,
            whole=whole,
            chunk=Chunk(M.mtmd_input_chunk_copy(chunk)),
        )

    def _encoded(self, medium: Medium) -> Any:
        """Its rows of floats: those that were kept, or new ones, which are kept."""
        kept = self._kept.pop(medium.digest, None)
        if kept is None:
            kept = self._encode(medium)
        self._kept[medium.digest] = kept
        while len(self._kept) > 1 and sum(map(ctypes.sizeof, self._kept.values())) > ENCODINGS:
            self._kept.popitem(last=False)
        return kept

    def _encode(self, medium: Medium) -> Any:
        if status := M.mtmd_encode_chunk(self._handle, medium.chunk.handle):
            raise RuntimeError(f"libmtmd could not encode a medium: {status}, {complaint()}")
        encoding = (ctypes.c_float * (medium.rows * self._width))()
        ctypes.memmove(encoding, M.mtmd_get_output_embd(self._handle), ctypes.sizeof(encoding))
        return encoding


def _one_call(medium: Medium, context: Any) -> int:
    """How many rows a call has for a medium that must not be cut; llama.cpp ends the process
    where its micro-batch is shorter.
    """
    most: int = min(L.llama_n_batch(context), L.llama_n_ubatch(context))
    if medium.rows > most:
        raise _refusal(f"one has {medium.rows} rows, this node computes {most} in one call")
    return medium.rows


def _tokens(chunk: Any) -> list[int]:
    count = ctypes.c_size_t()
    tokens = M.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
    found: list[int] = tokens[: count.value]
    return found


def _digest(*data: bytes) -> bytes:
    return blake2b(b"".join(data), digest_size=_DIGEST).digest()


def _refusal(why: str) -> RequestError:
    return RequestError(f"the images or sounds cannot be used: {why}", param="messages")
