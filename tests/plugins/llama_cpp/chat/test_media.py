from __future__ import annotations

import base64
from typing import Any

import pytest
from meshnode_llama_cpp.chat import media as module
from meshnode_llama_cpp.chat.media import Media

from p2p_mesh.errors import RequestError
from p2p_mesh.front import messages as front

URL = "data:image/png;base64," + base64.b64encode(b"image").decode()


def image(url: Any = URL) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def sound(data: Any = "c291bmQ=", kind: str = "wav") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": kind}}


def test_media_are_collected_in_order() -> None:
    media = Media("<m>")
    assert [media.image(image()), media.sound(sound())] == ["<m>", "<m>"]
    assert media.found == [b"image", b"sound"]
    media.check_prompt("a <m> <m>")


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (image("https://example.org/a.png"), "must be a data URL"),
        (image("data:text/html;base64,aaaa"), "must be a data URL"),
        (image(7), "must be a data URL"),
        (image("data:image/png;base64,a b="), "no base64"),
        (image("data:image/png;base64,é"), "no base64"),
        (sound(kind="ogg"), "needs a format, wav or mp3"),
        (sound(data=None), "needs its data"),
        (sound(data="???"), "no base64"),
    ],
)
def test_media_of_another_form_are_refused(part: dict[str, Any], says: str) -> None:
    media = Media("<m>")
    with pytest.raises(RequestError, match=says) as caught:
        (media.image if part["type"] == "image_url" else media.sound)(part)
    assert caught.value.param == "messages"


def test_a_data_url_is_what_the_api_takes_for_one() -> None:
    assert module.DATA_URL == front.DATA_URL


def test_without_a_projector_there_are_none() -> None:
    with pytest.raises(RequestError, match="this model takes no images"):
        Media("").image(image())
    with pytest.raises(RequestError, match="this model takes no audio"):
        Media("").sound(sound())


def test_media_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 9)
    monkeypatch.setattr(module, "MAX_TOTAL", 12)
    media = Media("<m>")
    with pytest.raises(RequestError, match="more than 9 bytes"):
        media.image(image("data:image/png;base64," + "A" * 40))
    media.image(image())
    media.image(image())
    with pytest.raises(RequestError, match="more than 12 bytes together"):
        media.image(image())


def test_media_are_not_too_many() -> None:
    media = Media("<m>")
    for _ in range(32):
        media.image(image())
    with pytest.raises(RequestError, match="more than 32 images"):
        media.image(image())


@pytest.mark.parametrize("value", ["a <m> b", [{"x": ("<m>",)}], {"<m>": 1}])
def test_a_client_cannot_write_the_marker(value: Any) -> None:
    with pytest.raises(RequestError, match="must not contain '<m>'"):
        Media("<m>").check_texts([], value)
    Media("").check_texts(value)


def test_a_template_that_drops_an_image_is_noticed() -> None:
    media = Media("<m>")
    media.image(image())
    with pytest.raises(RequestError, match="wrote 0 of 1"):
        media.check_prompt("nothing")
