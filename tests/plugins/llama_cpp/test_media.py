from __future__ import annotations

import ctypes
import gc
import io
import os
import struct
import wave
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp.mtmd_cpp as M
import pytest
from meshnode_llama_cpp.library import L, complaint, start
from meshnode_llama_cpp.media import Medium, Projector
from meshnode_llama_cpp.model import Model

from p2p_mesh.errors import ModelError, RequestError
from p2p_mesh.testing.models import write_model
from p2p_mesh.testing.projectors import Kind, write_grid_model, write_projector

Make = Callable[[Kind], Projector]
Open = Callable[..., Any]


def png(*colour: int, width: int = 112, height: int = 84, kind: int = 2) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)

    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    rows = (b"\0" + bytes(colour) * width) * height
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))  # fmt: skip


def wav(period: int, seconds: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        tone = b"".join(struct.pack("<h", 20_000 * (i % period < period // 2) - 10_000)
                        for i in range(period))  # fmt: skip
        sound.writeframes((tone * (16_000 // period + 1))[:32_000] * seconds)
    return file.getvalue()


RED, BLUE = png(200, 30, 30), png(30, 30, 200)
BROKEN = png(1, kind=3)  # colours from a palette that is not there: for the decoder alone to see


def jpeg() -> bytes:
    """Eight by eight pixels, of one grey: each coefficient has a code of one bit, which says 0."""
    codes = b"\1" + bytes(15) + b"\0"
    return b"".join(
        b"\xff" + marker + struct.pack(">H", 2 + len(body)) + body
        for marker, body in (
            (b"\xdb", b"\0" + b"\1" * 64),
            (b"\xc0", b"\x08\0\x08\0\x08\1\1\x11\0"),
            (b"\xc4", b"\0" + codes + b"\x10" + codes),
            (b"\xda", b"\1\1\0\0\x3f\0"),
        )
    ).join((b"\xff\xd8", b"\x3f\xff\xd9"))


def bmp() -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 192, 0, 0, 54) + head + bytes(192)


def flac() -> bytes:
    """A second of silence, in frames of a constant."""

    def checksum(data: bytes, polynomial: int, bits: int) -> bytes:
        value, top = 0, 1 << bits
        for byte in data:
            value ^= byte << (bits - 8)
            for _ in range(8):
                value = value << 1 ^ (polynomial | top if value << 1 & top else 0)
        return value.to_bytes(bits // 8, "big")

    def frame(number: int) -> bytes:
        head = b"\xff\xf8\x70\x00" + bytes([number]) + struct.pack(">H", 1_599)
        body = head + checksum(head, 0x07, 8) + b"\0\0\0"
        return body + checksum(body, 0x8005, 16)

    facts = struct.pack(">HH6xQ16x", 1_600, 1_600, 16_000 << 44 | 15 << 36 | 16_000)
    return b"fLaC\x80\0\0\x22" + facts + b"".join(map(frame, range(10)))


GIF = (b"GIF89a\1\0\1\0\x80\0\0\xff\xff\xff\0\0\0,\0\0\0\0\1\0\1\0\0"
       b"\2\2D\1\0;")  # fmt: skip
MP3 = (b"\xff\xfb\x90\x00" + bytes(413)) * 10


def load(path: Path) -> Model:
    return Model(str(path), name=path.stem, progress=lambda _: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    start()
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Model]:
    write_model(folder / "tiny.gguf", template=None)
    write_grid_model(folder / "grid.gguf")
    return {name: load(folder / f"{name}.gguf") for name in ("tiny", "grid")}


@pytest.fixture(scope="module")
def make(folder: Path, models: dict[str, Model]) -> Make:
    made: dict[Kind, Projector] = {}

    def make(kind: Kind) -> Projector:
        if kind not in made:
            path = write_projector(folder / f"mmproj-{kind}.gguf", kind=kind)
            model = models["grid" if kind == "grid" else "tiny"]
            made[kind] = Projector(str(path), model, threads=1, offload=False)
        return made[kind]

    return make


@pytest.fixture
def context(models: dict[str, Model]) -> Iterator[Open]:
    opened = []

    def make(kind: Kind, most: int = 32) -> Any:
        params = L.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 256, 64, most, 2
        params.n_threads = params.n_threads_batch = 1
        params.kv_unified = True
        model = models["grid" if kind == "grid" else "tiny"]
        opened.append(L.llama_init_from_model(model.handle, params))
        return opened[-1]

    yield make
    for handle in opened:
        L.llama_free(handle)


def decode(context: Any, tokens: Sequence[int], position: int, slot: int) -> list[float]:
    """The logits after the last of the tokens."""
    batch = L.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for row, token in enumerate(tokens):
        batch.token[row], batch.pos[row], batch.n_seq_id[row] = token, position + row, 1
        batch.seq_id[row][0], batch.logits[row] = slot, row == len(tokens) - 1
    assert L.llama_decode(context, batch) == 0
    L.llama_batch_free(batch)
    found: list[float] = L.llama_get_logits_ith(context, -1)[:512]
    return found


def write(
    projector: Projector, context: Any, *media: bytes, slot: int = 0, rows: int = 5
) -> list[float]:
    """The logits after a prompt with those media, in a sequence of its own."""
    L.llama_memory_seq_rm(L.llama_get_memory(context), slot, -1, -1)
    text = "look: " + projector.marker * len(media) + " what is it?"
    position, logits = 0, [0.0]
    for part in projector.read(text, media):
        if isinstance(part, Medium):
            position = projector.feed(part, context, slot=slot, position=position, rows=rows)
        else:
            logits = decode(context, part, position, slot)
            position += len(part)
    return logits


def refusal(projector: Projector, *media: bytes, text: str | None = None) -> str:
    with pytest.raises(RequestError) as caught:
        projector.read(projector.marker * len(media) if text is None else text, media)
    assert caught.value.param == "messages"
    return str(caught.value)


def test_a_projector_says_what_it_senses(make: Make) -> None:
    assert (make("vision").vision, make("vision").audio) == (True, False)
    assert (make("audio").vision, make("audio").audio) == (False, True)


def test_no_two_markers_are_equal(make: Make) -> None:
    assert make("vision").marker != make("audio").marker
    assert len(make("vision").marker) > 32


def test_a_text_without_media_is_tokenised_as_the_model_does(
    make: Make, models: dict[str, Model]
) -> None:
    for text in ("the cat", "</s>\0 nul <__media__>", ""):
        assert make("vision").read(text, []) == [models["tiny"].tokenize(text)]
    bare = make("vision").read("of", [], around=False)
    assert bare == [models["tiny"].tokenize("of", around=False)]


@pytest.mark.parametrize(
    ("kind", "data", "rows", "positions", "whole"),
    [("vision", RED, 16, 16, False), ("whole", RED, 16, 16, True), ("grid", RED, 12, 4, False),
     ("audio", wav(40), 30, 30, False)],
)  # fmt: skip
def test_a_medium_stands_where_its_marker_stood(
    make: Make, kind: Kind, data: bytes, rows: int, positions: int, whole: bool
) -> None:
    before, medium, after = make(kind).read(f"a {make(kind).marker} b", [data])
    assert isinstance(before, list)
    assert isinstance(after, list)
    assert before[0] == 1  # which opens a text
    assert isinstance(medium, Medium)
    assert (medium.rows, medium.positions, medium.whole) == (rows, positions, whole)
    assert len(medium.digest) == 16


def test_a_digest_is_that_of_the_content(make: Make) -> None:
    parts = make("vision").read(make("vision").marker * 3, [RED, BLUE, RED])
    red, blue, again = (part for part in parts if isinstance(part, Medium))
    assert red.digest == again.digest != blue.digest
    assert red == again != blue


def test_a_long_sound_is_of_several_parts(make: Make) -> None:
    parts = make("audio").read(make("audio").marker, [wav(40, seconds=61)])
    sounds = [part for part in parts if isinstance(part, Medium)]
    assert [sound.rows for sound in sounds] == [30, 30, 30]
    assert len({sound.digest for sound in sounds}) == 3


@pytest.mark.parametrize("kind", ["vision", "whole", "grid", "audio"])
def test_what_follows_depends_on_the_medium(make: Make, context: Open, kind: Kind) -> None:
    one, other = (wav(40), wav(160)) if kind == "audio" else (RED, BLUE)
    handle = context(kind)
    first, second, again = (write(make(kind), handle, data) for data in (one, other, one))
    assert all(abs(logit) < 1e4 for logit in first)  # finite, that is
    assert first == again
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 1e-3


@pytest.mark.parametrize("kind", ["vision", "grid"])
def test_a_medium_may_be_computed_in_parts(make: Make, context: Open, kind: Kind) -> None:
    handle = context(kind)
    alike = [write(make(kind), handle, RED, rows=rows) for rows in (1, 7, 64)]
    assert max(abs(a - b) for part in alike for a, b in zip(part, alike[0], strict=True)) < 1e-2


def test_a_whole_medium_is_never_computed_in_parts(make: Make, context: Open) -> None:
    handle = context("whole")
    assert write(make("whole"), handle, RED, rows=1) == write(make("whole"), handle, RED, rows=64)


def test_a_whole_medium_too_long_for_one_call_is_refused(make: Make, context: Open) -> None:
    (_, medium, _) = make("whole").read(make("whole").marker, [RED])
    assert isinstance(medium, Medium)
    with pytest.raises(RequestError, match="one has 16 rows, this node computes 8 in one call"):
        make("whole").feed(medium, context("whole", 8), slot=0, position=0, rows=64)


def test_positions_after_a_medium_are_those_it_takes(make: Make, context: Open) -> None:
    handle, projector = context("grid"), make("grid")
    (medium,) = (part for part in projector.read(projector.marker, [RED])
                 if isinstance(part, Medium))  # fmt: skip
    decode(handle, [1, 5, 6], 0, 1)
    assert projector.feed(medium, handle, slot=1, position=3, rows=64) == 7
    decode(handle, [5], 7, 1)
    assert L.llama_memory_seq_pos_max(L.llama_get_memory(handle), 1) == 7


def encoding(projector: Projector, size: int) -> bytes:
    """What libmtmd encoded last."""
    return ctypes.string_at(M.mtmd_get_output_embd(projector._handle), size)


def test_a_medium_is_encoded_once(make: Make, context: Open) -> None:
    handle, projector = context("vision"), make("vision")
    size = 16 * 64 * 4
    first = write(projector, handle, png(1, 2, 3))
    write(projector, handle, png(4, 5, 6))
    last = encoding(projector, size)
    assert write(projector, handle, png(1, 2, 3)) == first
    assert encoding(projector, size) == last
    write(projector, handle, png(7, 8, 9))
    assert encoding(projector, size) != last


def test_encodings_are_kept_up_to_a_limit(
    make: Make, context: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode_llama_cpp.media.ENCODINGS", 2 * 16 * 64 * 4)
    handle, projector = context("vision"), make("vision")
    for shade in range(4):
        write(projector, handle, png(shade, 0, 0))
    last = encoding(projector, 16 * 64 * 4)
    write(projector, handle, png(2, 0, 0))
    assert encoding(projector, 16 * 64 * 4) == last
    write(projector, handle, png(0, 0, 0))
    assert encoding(projector, 16 * 64 * 4) != last


def test_a_medium_without_room_is_refused(make: Make, context: Open) -> None:
    handle, projector = context("vision"), make("vision")
    (_, medium) = projector.read(projector.marker, [RED])
    assert isinstance(medium, Medium)
    decode(handle, [5] * 64, 0, 1)
    for position in range(0, 180, 60):
        decode(handle, [5] * 60, position, 0)
    with pytest.raises(RequestError, match="no room for the 16 rows of one"):
        projector.feed(medium, handle, slot=0, position=180, rows=64)
    assert complaint() == "it says nothing"  # else the next one would be told of this
    L.llama_memory_seq_rm(L.llama_get_memory(handle), 1, -1, -1)
    L.llama_memory_seq_rm(L.llama_get_memory(handle), 0, 180, -1)
    assert projector.feed(medium, handle, slot=0, position=180, rows=64) == 196


@pytest.mark.parametrize(
    ("kind", "data"),
    [("vision", jpeg()), ("vision", GIF), ("vision", bmp()), ("vision", RED), ("audio", MP3),
     ("audio", flac()), ("audio", wav(40))],
    ids=["jpeg", "gif", "bmp", "png", "mp3", "flac", "wav"],
)  # fmt: skip
def test_each_format_is_decoded(make: Make, kind: Kind, data: bytes) -> None:
    _, medium = make(kind).read(make(kind).marker, [data])
    assert isinstance(medium, Medium)
    assert medium.rows == (30 if kind == "audio" else 16)


@pytest.mark.parametrize(
    ("kind", "data", "why"),
    [
        ("vision", b"\0" * 99, "it is no image"),
        ("vision", RED[:-20], "the PNG has no end"),
        ("vision", png(1, 2, 3, width=9, height=2_000), "223 times the shorter one"),
        ("vision", BROKEN, "the image is broken"),
        ("vision", wav(40), "tiny reads no sounds"),
        ("audio", RED, "tiny reads no images"),
    ],
)
def test_what_cannot_be_read_is_refused(make: Make, kind: Kind, data: bytes, why: str) -> None:
    assert why in refusal(make(kind), data)


def test_media_and_markers_must_agree(make: Make) -> None:
    marker = make("vision").marker
    for text in ("", marker, marker * 3):
        assert "chat template" in refusal(make("vision"), RED, BLUE, text=text)


def test_there_may_not_be_too_many_media(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the limit is 32" in refusal(make("vision"), *[RED] * 33)
    monkeypatch.setattr("meshnode_llama_cpp.media.MAX_DECODED", 2 * 3 * 112 * 84)
    assert make("vision").read(make("vision").marker * 2, [RED, BLUE])
    assert "they take 84,672 bytes when decoded" in refusal(make("vision"), RED, BLUE, RED)


def test_no_program_is_started_for_what_cannot_be_decoded(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ffmpeg", "ffprobe"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert "broken" in refusal(make("vision"), BROKEN)
    assert not (tmp_path / "started").exists()


def test_refusals_keep_no_file_open(make: Make) -> None:
    refusal(make("vision"), BROKEN)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        refusal(make("vision"), BROKEN)
    assert len(os.listdir("/proc/self/fd")) == before


def test_native_memory_goes_with_its_owners(folder: Path, make: Make) -> None:
    make("vision")
    model = load(folder / "tiny.gguf")
    projector = Projector(str(folder / "mmproj-vision.gguf"), model, threads=1, offload=False)
    (_, medium) = projector.read(projector.marker, [RED])
    assert isinstance(medium, Medium)
    chunk = medium.chunk
    assert chunk.handle
    del projector, medium
    gc.collect()
    assert M.mtmd_input_chunk_get_n_tokens(chunk.handle) == 16  # outlives its projector


@pytest.mark.parametrize("kind", ["vision", "whole", "grid", "audio"])
def test_a_projector_of_another_width_is_a_model_error(
    folder: Path, models: dict[str, Model], kind: Kind
) -> None:
    path = write_projector(folder / "wide.gguf", kind=kind, width=128)
    with pytest.raises(ModelError, match=r"n_embd = 64.*n_embd = 128"):
        Projector(str(path), models["tiny"], threads=1, offload=False)


def test_what_is_no_projector_is_a_model_error(folder: Path, models: dict[str, Model]) -> None:
    whole = write_projector(folder / "whole.gguf").read_bytes()
    (folder / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (folder / "rubbish.gguf").write_bytes(os.urandom(999))
    for name, why in (("tiny", "no encoder"), ("none", "no encoder"), ("rubbish", "no encoder"),
                      ("cut", "is no projector for tiny")):  # fmt: skip
        with pytest.raises(ModelError, match=why):
            Projector(str(folder / f"{name}.gguf"), models["tiny"], threads=1, offload=False)
