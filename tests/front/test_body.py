import json
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from p2p_mesh.errors import RequestError
from p2p_mesh.front.body import NAMED, PARSED_AT_ONCE, conversation, read


def request(body: bytes) -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


@pytest.mark.parametrize("size", [1, PARSED_AT_ONCE + 1])
async def test_body_is_read_whatever_its_size(size: int) -> None:
    body: dict[str, Any] = {"prompt": "x" * size}
    assert await read(request(json.dumps(body).encode())) == body


@pytest.mark.parametrize("size", [1, PARSED_AT_ONCE + 1])
async def test_what_is_not_json_is_refused(size: int) -> None:
    with pytest.raises(RequestError):
        await read(request(b"[" * size))


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"prompt_cache_key": "mine"}, "mine"),
        ({"prompt_cache_key": "x" * (NAMED + 1)}, "x" * NAMED),
        ({"prompt_cache_key": ["of", "no", "use"]}, ""),
        ({"user": "kim"}, ""),
    ],
)
def test_conversation_has_the_name_that_its_client_gives_it(body: Any, name: str) -> None:
    assert conversation(body) == name
