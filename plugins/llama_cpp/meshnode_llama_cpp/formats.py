"""What an image or a sound from a client would be when decoded, told from its bytes; pure.

The decoders behind libmtmd (stb_image, miniaudio) take memory as a header asks, end the process
where that is too much, and try the next format where one fails. So this decides first: which of
few formats it is, how large it becomes, and which bytes they get to see. An image is handed on as
it came, walked as its decoder walks it; a sound in a header of our own, or as the frames that were
counted here, so that what was checked is what is decoded.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Literal

from p2p_mesh.errors import RequestError

Sense = Literal["image", "sound"]

MAX_IMAGE = 20 * 2**20
MAX_SOUND = 8 * 2**20
"""Bytes of a file."""
MAX_PIXELS = 40_000_000
MAX_SIDE = 16_384
MAX_SECONDS = 600
_MAX_RAW = 4 * MAX_PIXELS  # bytes of a PNG, inflated
_MAX_RATIO = 200  # of the sides: beyond it, scaling leaves nothing of one
_MAX_CHUNKS = 100_000
_MAX_SCANS = 50  # each scan of a JPEG goes over the whole image again
_MIN_SECONDS = 0.1  # shorter sounds are less than a window of some spectrograms
_RATES = range(4_000, 192_001)
_HEARD_AT = 16_000  # samples per second, or so, of four bytes


@dataclass(frozen=True, slots=True)
class Checked:
    """A file that is safe to decode."""

    sense: Sense
    data: bytes
    """What the decoder sees."""
    decoded: int
    """About how many bytes it becomes."""


def check(data: bytes) -> Checked:
    """Raises RequestError for what is no image or sound of a known format, broken, or too large."""
    for magic, sense, read in _FORMATS:
        if magic.match(data):
            _limit(len(data), MAX_IMAGE if sense == "image" else MAX_SOUND, f"{sense} has", "bytes")
            try:
                return read(data)
            except (struct.error, IndexError, ValueError):
                raise _broken(f"the {sense} ends in the middle of a header") from None
    raise _broken("it is no image (PNG, JPEG, GIF, BMP) and no sound (WAV, MP3, FLAC) that is read")


def _broken(why: str) -> RequestError:
    return RequestError(f"an image or sound cannot be used: {why}", param="messages")


def _limit(value: float, most: int, what: str, unit: str) -> None:
    if value > most:
        raise _broken(f"the {what} {ceil(value):,} {unit}, the limit is {most:,}")


def _image(data: bytes, width: int, height: int) -> Checked:
    shorter, longer = sorted((width, height))
    if shorter < 1:
        raise _broken("the image has no pixels")
    _limit(longer, MAX_SIDE, "longer side of the image has", "pixels")
    _limit(width * height, MAX_PIXELS, "image has", "pixels")
    _limit(longer / shorter, _MAX_RATIO, "longer side of the image is", "times the shorter one")
    return Checked("image", data, 3 * width * height)


def _png(data: bytes) -> Checked:
    """https://www.w3.org/TR/png-3/"""
    length, name, width, height, depth, colour = struct.unpack_from(">I4sIIBB", data, 8)
    if (length, name) != (13, b"IHDR") or colour not in _CHANNELS or depth not in (1, 2, 4, 8, 16):
        raise _broken("the PNG has a header that is none")
    image = _image(data, width, height)
    rows = height * ((width * depth * _CHANNELS[colour] + 7) // 8 + 1)
    _limit(rows, _MAX_RAW, "PNG has", "bytes when inflated")
    _inflate(data, 2 * rows + 2**16)  # interlaced rows are shorter, and more
    return image


_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def _inflate(data: bytes, most: int) -> None:
    """Goes through the pixels once: a decoder inflates all that is there before it looks."""
    stream, size = zlib.decompressobj(), 0
    try:
        for chunk in _pixels(data):
            while chunk and not stream.eof:
                size += len(stream.decompress(chunk, 2**20))
                _limit(size, most, "PNG has", "bytes or more when inflated")
                chunk = stream.unconsumed_tail
    except zlib.error:
        raise _broken("the PNG's pixels do not inflate") from None
    if not stream.eof:
        raise _broken("the PNG's pixels are not all there")


def _pixels(data: bytes) -> Iterator[bytes]:
    """The parts of the compressed pixels, up to the end of the image."""
    position = 8
    for _ in range(_MAX_CHUNKS):
        length, name = struct.unpack_from(">I4s", data, position)
        start, position = position + 8, position + 12 + length
        if position > len(data):
            break
        if name == b"IEND":
            return
        if name == b"IDAT":
            yield data[start : start + length]
    raise _broken("the PNG has no end")


def _jpeg(data: bytes) -> Checked:
    """ITU-T T.81, annex B. The first frame header counts, as for the decoder."""
    _limit(data.count(b"\xff\xda"), _MAX_SCANS, "JPEG has", "scans")
    position = 2
    for _ in range(_MAX_CHUNKS):
        found = _MARKER.search(data, position)
        if not found:
            break
        marker, length, _, height, width = struct.unpack_from(">BHBHH", data, found.start() + 1)
        if marker in (0xC0, 0xC1, 0xC2):
            if data.find(b"\xff\xd9", found.end()) < 0:
                break  # which the decoder would paint over
            return _image(data, width, height)
        if marker not in _SEGMENTS or length < 2:
            raise _broken("the JPEG is of a kind that is not read; save it as a usual one")
        position = found.start() + 2 + length
    raise _broken("the JPEG is not all there")


_MARKER = re.compile(rb"\xff[^\xff]")
_SEGMENTS = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}  # tables, comments, applications' data


def _gif(data: bytes) -> Checked:
    return _image(data, *struct.unpack_from("<HH", data, 6))


def _bmp(data: bytes) -> Checked:
    (offset, size) = struct.unpack_from("<II", data, 10)
    layout, start = ("<HHHH", 18) if size == 12 else ("<iiHH", 18)
    width, height, _, bits = struct.unpack_from(layout, data, start)
    if width * abs(height) * bits > 8 * (len(data) - offset):
        raise _broken("the BMP's pixels are not all there")
    return _image(data, width, abs(height))


def _sound(data: bytes, rate: int, samples: int) -> Checked:
    if rate not in _RATES:
        raise _broken(f"the sound has {rate} samples per second, not 4,000 to 192,000")
    seconds = samples / rate
    _limit(seconds, MAX_SECONDS, "sound has", "seconds")
    if seconds < _MIN_SECONDS:
        raise _broken(f"the sound is shorter than {_MIN_SECONDS:g} seconds")
    return Checked("sound", data, int(seconds * _HEARD_AT * 4))


def _wav(data: bytes) -> Checked:
    """http://soundfile.sapp.org/doc/WaveFormat/. A size that is not known yet (a stream's) is that
    of the rest.
    """
    chunks = dict(_riff(data))
    layout = chunks.get(b"fmt ", b"")
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", layout)
    if tag == _EXTENSIBLE:
        (tag,) = struct.unpack_from("<H", layout, 24)
    if bits not in _SAMPLES.get(tag, ()) or channels not in range(1, 9):
        raise _broken("the WAV is compressed, or of a kind that is not read; save it as 16-bit PCM")
    frame = channels * bits // 8
    samples = chunks.get(b"data", b"")
    samples = samples[: len(samples) // frame * frame]
    head = struct.pack(
        "<4sI8sIHHIIHH4sI", b"RIFF", 36 + len(samples), b"WAVEfmt ", 16, tag, channels, rate,
        rate * frame, frame, bits, b"data", len(samples),
    )  # fmt: skip
    return _sound(head + samples, rate, len(samples) // frame)


_EXTENSIBLE = 0xFFFE
_SAMPLES = {1: (8, 16, 24, 32), 3: (32, 64), 6: (8,), 7: (8,)}  # PCM, float, A-law, mu-law: bits


def _riff(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 12
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(data):
            return
        name, length = struct.unpack_from("<4sI", data, position)
        yield name, data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2


def _flac(data: bytes) -> Checked:
    """RFC 9639, section 8. Of what stands before the frames, only the stream's facts go on."""
    facts = data[8:42]
    if data[4] & 0x7F or data[5:8] != b"\0\0\x22" or len(facts) < 34:
        raise _broken("the FLAC has a header that is none")
    packed = int.from_bytes(facts[10:18], "big")
    rate, total = packed >> 44, packed & (2**36 - 1)
    position, last = 42, data[4] >> 7
    while not last:
        last = data[position] >> 7
        position += 4 + int.from_bytes(data[position + 1 : position + 4], "big")
    if not total:
        raise _broken("the FLAC does not say how long it is")
    return _sound(b"fLaC\x80\0\0\x22" + facts + data[position:], rate, total)


def _mp3(data: bytes) -> Checked:
    """ISO 11172-3. The frames that follow one another without a gap, and of one sampling rate; not
    those that only tell how many there are.
    """
    heads = list(islice(_frames(data), _MAX_FRAMES))
    if not heads:
        raise _broken("the MP3 has no frames")
    told = [data[start:end] for start, end, _, _ in heads
            if not _TOLD.search(data, start, min(end, start + 64))]  # fmt: skip
    _, _, samples, rate = heads[0]
    return _sound(b"".join(told), rate, len(told) * samples)


_TOLD = re.compile(b"Xing|Info|VBRI")
_MAX_FRAMES = MAX_SECONDS * 1000 // 24 + 1  # no frame is shorter than 24 ms
_SEARCH = 2**16  # bytes of rubbish before the first frame
_Frame = tuple[int, int, int, int]


def _frames(data: bytes) -> Iterator[_Frame]:
    """Where each frame starts and ends, its samples, and how many of them make a second."""
    frame = _first(data, _after_tag(data))
    start = frame[0] if frame else 0
    while frame is not None and frame[1] <= len(data):
        yield frame
        following = _frame(data, frame[1])
        same = following is not None and _same(data, start, following[0])
        frame = following if same else None


def _after_tag(data: bytes) -> int:
    """Past what an ID3v2 tag takes."""
    if data[:3] != b"ID3":
        return 0
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size + (10 if data[5] & 0x10 else 0)


def _first(data: bytes, start: int) -> _Frame | None:
    """The first frame that another follows, or nothing."""
    for found in re.finditer(rb"\xff[\xe2-\xff]", data[start : start + _SEARCH]):
        frame = _frame(data, start + found.start())
        if frame and (frame[1] == len(data) or _same(data, frame[0], frame[1])):
            return frame
    return None


def _same(data: bytes, one: int, other: int) -> bool:
    """Whether two frames are of the same version, layer and sampling rate."""
    if other + 4 > len(data) or _frame(data, other) is None:
        return False
    return (data[one + 1] ^ data[other + 1]) & 0xFE == 0 == (data[one + 2] ^ data[other + 2]) & 0x0C


def _frame(data: bytes, start: int) -> _Frame | None:
    """The frame of layer III that begins there; free formats, whose size is not told, are none."""
    if start + 4 > len(data) or data[start] != 0xFF or data[start + 1] & 0xE6 != 0xE2:
        return None
    version, bits, speed = data[start + 1] >> 3 & 3, data[start + 2] >> 4, data[start + 2] >> 2 & 3
    if version == 1 or bits in (0, 15) or speed == 3:
        return None
    rate = (44_100, 48_000, 32_000)[speed] // {3: 1, 2: 2, 0: 4}[version]
    rates, samples = (_BIT_RATES_1, 1152) if version == 3 else (_BIT_RATES_2, 576)
    length = samples // 8 * rates[bits] * 1000 // rate + (data[start + 2] >> 1 & 1)
    return start, start + length, samples, rate


_BIT_RATES_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_BIT_RATES_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)

_FORMATS: tuple[tuple[re.Pattern[bytes], Sense, Callable[[bytes], Checked]], ...] = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image", _png),
    (re.compile(rb"\xff\xd8\xff"), "image", _jpeg),
    (re.compile(rb"GIF8[79]a"), "image", _gif),
    (re.compile(rb"BM"), "image", _bmp),
    (re.compile(rb"RIFF....WAVE", re.DOTALL), "sound", _wav),
    (re.compile(rb"fLaC"), "sound", _flac),
    (re.compile(rb"ID3|\xff[\xe2-\xff]"), "sound", _mp3),
)
