"""Images and sounds in the parts of messages: their bytes, and a marker where they stood."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from p2p_mesh.errors import RequestError

MAX_MEDIA = 32
"""Of one prompt."""
MAX_BYTES = 20 * 2**20
"""Of one image or sound,"""
MAX_TOTAL = 40 * 2**20
"""and of all of them; as base64, that still goes into a frame."""

DATA_URL = re.compile(r"data:image/[\w.+-]{1,64};base64,", re.ASCII | re.IGNORECASE)
"""As the HTTP API has it."""
_SOUNDS = ("wav", "mp3")


class Media:
    """Collects what the messages of one prompt hold. Without a marker, nothing is taken."""

    def __init__(self, marker: str) -> None:
        self.found: list[bytes] = []
        self._marker = marker

    def image(self, part: dict[str, Any]) -> str:
        """The marker of an `image_url` part."""
        self._check_taken("images")
        given = part.get("image_url")
        url = given.get("url") if isinstance(given, dict) else given
        head = DATA_URL.match(url) if isinstance(url, str) else None
        if head is None:
            raise _refused("an image_url must be a data URL: data:image/png;base64,...")
        assert isinstance(url, str)
        return self._add(url[head.end() :])

    def sound(self, part: dict[str, Any]) -> str:
        """The marker of an `input_audio` part."""
        self._check_taken("audio")
        given = part.get("input_audio")
        data = given.get("data") if isinstance(given, dict) else None
        if not isinstance(given, dict) or given.get("format") not in _SOUNDS:
            raise _refused(f"an input_audio needs a format, {' or '.join(_SOUNDS)}")
        if not isinstance(data, str):
            raise _refused("an input_audio needs its data, as base64")
        return self._add(data)

    def check_texts(self, *values: Any) -> None:
        """Raises RequestError if a client wrote the marker itself, anywhere: it would be taken
        for an image or a sound.
        """
        left = list(values) if self._marker else []
        while left:
            value = left.pop()
            if isinstance(value, str) and self._marker in value:
                raise _refused(f"the text must not contain {self._marker!r}")
            if isinstance(value, dict):
                left += [*value.keys(), *value.values()]
            elif isinstance(value, list | tuple):
                left += value

    def check_prompt(self, text: str) -> None:
        """Raises RequestError unless the template wrote each medium, and once."""
        count = text.count(self._marker) if self._marker else 0
        if count != len(self.found):
            raise _refused(
                f"the chat template wrote {count} of {len(self.found)} images or sounds; "
                "put them into the messages of the user"
            )

    def _check_taken(self, what: str) -> None:
        if not self._marker:
            raise _refused(f"this model takes no {what}")

    def _add(self, text: str) -> str:
        if len(self.found) == MAX_MEDIA:
            raise _refused(f"there are more than {MAX_MEDIA} images and sounds")
        if len(text) > MAX_BYTES * 4 // 3 + 4:
            raise _refused(f"an image or sound has more than {MAX_BYTES} bytes")
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise _refused(f"an image or sound is no base64: {error}") from None
        if sum(map(len, self.found)) + len(data) > MAX_TOTAL:
            raise _refused(f"the images and sounds have more than {MAX_TOTAL} bytes together")
        self.found.append(data)
        return self._marker


def _refused(why: str) -> RequestError:
    return RequestError(why, param="messages")
