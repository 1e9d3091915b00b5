from __future__ import annotations

import io
import struct
import wave
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode_llama_cpp.formats import Checked, check

from p2p_mesh.errors import RequestError

MP3_FRAME = b"\xff\xfb\x90\x00" + bytes(413)  # 1,152 samples at 44,100 Hz, 128 kbit/s
JPEG_FRAME = b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", 30, 40) + b"\x03" + bytes(9)
FLAC_FACTS = bytes(10) + (16_000 << 44 | 15 << 36 | 32_000).to_bytes(8, "big") + bytes(16)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *, pixels: bytes | None = None, depth: int = 8) -> bytes:
    rows = (b"\0" + bytes(3 * width)) * height if pixels is None else pixels
    head = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))  # fmt: skip


def wav(samples: int, *, rate: int = 16_000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(bytes(2 * channels * samples))
    return file.getvalue()


def bmp(width: int, height: int, pixels: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + pixels, 0, 0, 54) + head + bytes(pixels)


def refusal(data: bytes) -> str:
    with pytest.raises(RequestError) as caught:
        check(data)
    assert caught.value.param == "messages"
    return str(caught.value).removeprefix("an image or sound cannot be used: ")


@pytest.mark.parametrize(
    "data",
    [
        png(40, 30),
        b"\xff\xd8\xff\xe0\x00\x04JF\xff\xff" + JPEG_FRAME[1:] + b"\xff\xd9",
        b"GIF89a" + struct.pack("<HH", 40, 30) + bytes(9),
        bmp(40, 30, 3600),
        bmp(40, -30, 3600),
    ],
    ids=["png", "jpeg", "gif", "bmp", "bmp-downward"],
)
def test_an_image_goes_on_as_it_came(data: bytes) -> None:
    assert check(data) == Checked("image", data, 3 * 40 * 30)


@pytest.mark.parametrize(
    ("width", "height", "why"),
    [
        (0, 9, "the image has no pixels"),
        (16_385, 9_000, "the longer side of the image has 16,385 pixels, the limit is 16,384"),
        (8_000, 5_001, "the image has 40,008,000 pixels, the limit is 40,000,000"),
        (201, 1, "the longer side of the image is 201 times the shorter one, the limit is 200"),
    ],
)
def test_an_image_of_impossible_size_is_refused(width: int, height: int, why: str) -> None:
    assert refusal(b"GIF89a" + struct.pack("<HH", width, height)) == why
    assert refusal(bmp(width, height, 0)) in (why, "the BMP's pixels are not all there")


def test_a_png_that_inflates_to_more_than_its_pixels_is_refused() -> None:
    bomb = png(10, 10, pixels=bytes(50_000_000))
    assert len(bomb) < 60_000
    assert refusal(bomb).startswith("the PNG has 1,0")


def test_a_png_whose_pixels_are_too_wide_is_refused_unread() -> None:
    head = struct.pack(">IIBBBBB", 7_000, 5_000, 16, 6, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    why = "the PNG has 280,005,000 bytes when inflated, the limit is 160,000,000"
    assert refusal(data) == why


def test_a_png_is_refused_wherever_it_is_cut() -> None:
    whole = png(9, 9)
    for size in range(8, len(whole) - 4):  # the last checksum, nobody reads
        assert refusal(whole[:size])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff\xd8\xff\xda" * 51, "the JPEG has 51 scans, the limit is 50"),
        (b"\xff\xd8" + JPEG_FRAME, "the JPEG is not all there"),
        (b"\xff\xd8\xff", "the JPEG is not all there"),
        (b"\xff\xd8\xff\xc3" + bytes(20),
         "the JPEG is of a kind that is not read; save it as a usual one"),
        (b"\xff\xd8\xff\xe0" + bytes(20),
         "the JPEG is of a kind that is not read; save it as a usual one"),
    ],
)  # fmt: skip
def test_a_bad_jpeg_is_refused(data: bytes, why: str) -> None:
    assert refusal(data) == why


@pytest.mark.parametrize("data", [b"", b"RIFF\0\0\0\0WEBPVP8 ", b"8BPS", b"OggS", b"#EXTM3U"])
def test_other_formats_are_refused(data: bytes) -> None:
    why = "it is no image (PNG, JPEG, GIF, BMP) and no sound (WAV, MP3, FLAC) that is read"
    assert refusal(data) == why


def test_a_file_may_not_be_too_long() -> None:
    assert refusal(b"BM" + bytes(20 * 2**20)) == (
        "the image has 20,971,522 bytes, the limit is 20,971,520"
    )
    assert refusal(b"ID3" + bytes(8 * 2**20)) == (
        "the sound has 8,388,611 bytes, the limit is 8,388,608"
    )


def test_a_wav_goes_on_under_a_header_of_its_own() -> None:
    data = wav(16_000)
    junk = b"RIFF\0\0\0\0WAVELIST\x03\0\0\0abc\0"
    assert check(data) == Checked("sound", data, 64_000)
    assert check(junk + data[12:]) == Checked("sound", data, 64_000)
    assert check(data[:40] + b"\xff\xff\xff\xff" + data[44:]).data == data


def test_a_cut_wav_is_as_long_as_what_is_there() -> None:
    cut = check(wav(16_000)[:-15_001])
    assert cut == check(wav(8_499))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (wav(1_000_000, rate=1_000), "the sound has 1000 samples per second, not 4,000 to 192,000"),
        (wav(3_604_000, rate=4_000), "the sound has 901 seconds, the limit is 600"),
        (wav(100), "the sound is shorter than 0.1 seconds"),
        (wav(16_000)[:30], "the sound ends in the middle of a header"),
        (wav(16_000)[:20] + b"\x11" + wav(16_000)[21:],
         "the WAV is compressed, or of a kind that is not read; save it as 16-bit PCM"),
    ],
    ids=["slow", "long", "short", "cut", "compressed"],
)  # fmt: skip
def test_a_bad_wav_is_refused(data: bytes, why: str) -> None:
    assert refusal(data) == why


def test_the_frames_of_an_mp3_go_on_alone() -> None:
    told = MP3_FRAME[:36] + b"Xing" + b"\xff" * 377
    tag = b"ID3\x04\0\0\0\0\x01\0" + bytes(128)
    found = check(tag + b"rubbish" + told + MP3_FRAME * 10 + b"TAG" + bytes(125))
    assert found == Checked("sound", MP3_FRAME * 10, int(10 * 1152 / 44_100 * 64_000))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"ID3" + bytes(100), "the MP3 has no frames"),
        (MP3_FRAME[:200], "the MP3 has no frames"),
        (b"\xff\xfb\x00\x00\x00" * 100, "the MP3 has no frames"),
        (MP3_FRAME, "the sound is shorter than 0.1 seconds"),
        ((b"\xff\xf3\x14\x00" + bytes(20)) * 40_000, "the sound has 601 seconds, the limit is 600"),
    ],
    ids=["empty", "cut", "free", "short", "long"],
)
def test_a_bad_mp3_is_refused(data: bytes, why: str) -> None:
    assert refusal(data) == why


def test_of_a_flacs_header_only_the_facts_go_on() -> None:
    data = b"fLaC\0\0\0\x22" + FLAC_FACTS + b"\x04\0\0\x03abc\x81\0\0\x02de" + b"frames"
    expected = b"fLaC\x80\0\0\x22" + FLAC_FACTS + b"frames"
    assert check(data) == check(expected) == Checked("sound", expected, 128_000)


@pytest.mark.parametrize(
    ("total", "why"),
    [(0, "the FLAC does not say how long it is"),
     (2**36 - 1, "the sound has 4,294,968 seconds, the limit is 600")],
)  # fmt: skip
def test_a_flac_of_impossible_length_is_refused(total: int, why: str) -> None:
    facts = bytes(10) + (16_000 << 44 | total).to_bytes(8, "big") + bytes(16)
    assert refusal(b"fLaC\x80\0\0\x22" + facts) == why


@given(
    st.sampled_from([png(9, 9), wav(2_000), MP3_FRAME * 9, bmp(9, 9, 243),
                     b"\xff\xd8" + JPEG_FRAME + b"\xff\xd9", b"fLaC\0\0\0\x22" + FLAC_FACTS]),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=8),
    st.integers(0, 500),
)  # fmt: skip
def test_no_bytes_raise_anything_but_a_refusal(
    data: bytes, changes: list[tuple[int, int]], size: int
) -> None:
    changed = bytearray(data)
    for place, byte in changes:
        changed[place % len(changed)] = byte
    for given_ in (bytes(changed), bytes(changed)[:size]):
        try:
            assert check(given_).decoded < 4 * 40_000_000
        except RequestError:
            continue
