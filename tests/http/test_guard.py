from typing import Any

import httpx
import pytest
import trio
import trio.testing
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from p2p_mesh.errors import SettingsError
from p2p_mesh.http.guard import (
    BODY_LIMIT,
    BODY_TIMEOUT,
    Access,
    Guard,
    Policy,
    is_loopback,
    refusal,
)

KEY = "sk-local"
TOKEN = "from-node.json"
JSON = {"content-type": "application/json"}
LOCAL = Policy(hostname="box")
OPEN = Policy(listen=True, api_key=KEY, hostname="Box")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:9337",
        "LOCALHOST",
        "localhost.",
        "app.localhost:80",
        "127.0.0.1:9337",
        "127.8.8.8",
        "[::1]:9337",
        "[::ffff:127.0.0.1]",
    ],
)
def test_loopback_is_a_host(host: str) -> None:
    assert LOCAL.admits_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        ":9337",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example:9337",
        "192.168.1.5",
        "0.0.0.0",
        "[::]",
        "127.1",
        "2130706433",
        "box",
        "localhost:port",
        "localhost:99999",
        "user@localhost",
        "localhost/evil",
        "localhost#evil",
        "localhost?evil",
        "localhost\\evil",
        "[::1",
        "local\thost",
    ],
)
def test_other_names_are_not(host: str) -> None:
    assert not LOCAL.admits_host(host)


@pytest.mark.parametrize("host", ["192.168.1.5:9337", "[fe80::1]", "box:9337", "BOX", "localhost"])
def test_listening_node_is_called_by_address_and_hostname(host: str) -> None:
    assert OPEN.admits_host(host)


@pytest.mark.parametrize("host", ["evil.example", "box.evil.example", "notbox"])
def test_listening_node_is_not_called_otherwise(host: str) -> None:
    assert not OPEN.admits_host(host)


def test_allowed_host_is_admitted() -> None:
    policy = Policy(allow_hosts={"Mesh.example"})
    assert policy.admits_host("mesh.example:443")
    assert not policy.admits_host("other.example")


def test_listening_needs_a_key() -> None:
    with pytest.raises(SettingsError, match="--api-key"):
        Policy(listen=True)


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000",
        "https://localhost",
        "http://127.0.0.1:1",
        "http://[::1]:3131",
        "http://app.localhost",
        "HTTP://LOCALHOST",
    ],
)
def test_local_page_may_call(origin: str) -> None:
    assert LOCAL.admits_origin(origin, "localhost:9337")


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "https://evil.example",
        "http://localhost.evil.example",
        "http://evil.example#localhost",
        "http://localhost@evil.example",
        "file://",
        "file://localhost",
        "chrome-extension://localhost",
        "localhost",
        "http://192.168.1.5",
    ],
)
def test_foreign_page_may_not(origin: str) -> None:
    assert not LOCAL.admits_origin(origin, "localhost:9337")


def test_page_of_the_same_port_may_call() -> None:
    assert OPEN.admits_origin("http://192.168.1.5:3131", "192.168.1.5:3131")
    assert not OPEN.admits_origin("http://192.168.1.6:3131", "192.168.1.5:3131")


def test_allowed_origin_is_admitted() -> None:
    policy = Policy(allow_origins={"https://Chat.example/"})
    assert policy.admits_origin("https://chat.example", "localhost")
    assert not policy.admits_origin("http://chat.example", "localhost")


@pytest.mark.parametrize(("name", "local"), [("::1", True), ("10.0.0.1", False), ("x", False)])
def test_loopback(name: str, local: bool) -> None:
    assert is_loopback(name) is local


def code(
    method: str = "GET",
    path: str = "/",
    headers: dict[str, str] | None = None,
    policy: Policy = LOCAL,
    access: Access = Access(),  # noqa: B008  frozen
) -> tuple[int, str] | None:
    given = {"host": "localhost", **(headers or {})}
    refused = refusal(method, path, Headers(given), policy, access)
    return None if refused is None else (refused.status, refused.code)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"host": "evil.example"}, (403, "forbidden_host")),
        ({"origin": "https://evil.example"}, (403, "forbidden_origin")),
        ({"origin": "null"}, (403, "forbidden_origin")),
        ({"sec-fetch-site": "cross-site"}, (403, "forbidden_origin")),
        ({"sec-fetch-site": "same-origin"}, None),
        ({"sec-fetch-site": "none"}, None),
        ({"sec-fetch-site": "cross-site", "origin": "http://localhost:3000"}, None),
    ],
)
def test_browser_rules(headers: dict[str, str], expected: tuple[int, str] | None) -> None:
    assert code(headers=headers) == expected


def test_one_host_and_only_admitted_origins() -> None:
    def refused(*raw: tuple[bytes, bytes]) -> bool:
        return refusal("GET", "/", Headers(raw=list(raw)), LOCAL, Access()) is not None

    host, other = (b"host", b"localhost"), (b"host", b"127.0.0.1")
    origin, evil = (b"origin", b"http://localhost"), (b"origin", b"https://evil.example")
    assert refused()
    assert refused(host, other)
    assert refused(host, origin, evil)
    assert not refused(host, origin)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "application/jsonp"}, 415),
        ({"content-type": "text/plain; application/json"}, 415),
        ({**JSON, "content-encoding": "gzip"}, 415),
        ({**JSON, "content-length": str(BODY_LIMIT + 1)}, 413),
        ({**JSON, "content-length": str(BODY_LIMIT)}, None),
        ({"content-type": "Application/JSON; charset=utf-8"}, None),
    ],
)
def test_body_must_be_json(headers: dict[str, str], expected: int | None) -> None:
    refused = code("POST", headers=headers)
    assert (refused and refused[0]) == expected


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_what_no_form_sends_needs_no_type_without_a_body(method: str) -> None:
    assert code(method) is None
    assert code(method, headers={"content-length": "3"}) == (415, "unsupported_media_type")


def test_a_get_with_a_body_must_be_json_too() -> None:
    assert code(headers={"content-length": "3"}) == (415, "unsupported_media_type")
    assert code(headers={"transfer-encoding": "chunked"}) == (415, "unsupported_media_type")
    assert code(headers={"content-length": "0"}) is None


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}", **JSON}


@pytest.mark.parametrize(
    ("headers", "is_admitted"),
    [
        ({}, False),
        ({"authorization": KEY}, False),
        ({"authorization": f"Basic {KEY}"}, False),
        ({"authorization": "Bearer "}, False),
        (bearer("wrong"), False),
        (bearer(KEY + "x"), False),
        (bearer("\xff"), False),
        (bearer(KEY), True),
        ({"authorization": f"bearer  {KEY} "}, True),
    ],
)
def test_key_is_asked_for(headers: dict[str, str], is_admitted: bool) -> None:
    policy = Policy(api_key=KEY)
    assert (code(headers=headers, policy=policy) is None) is is_admitted


def test_open_path_needs_no_key_to_be_read() -> None:
    access = Access(open_paths=frozenset({"/health"}))
    assert code(path="/health", policy=OPEN, access=access) is None
    assert code("POST", "/health", headers=JSON, policy=OPEN, access=access) is not None
    assert code(path="/health2", policy=OPEN, access=access) is not None


def test_change_needs_the_token() -> None:
    access = Access(token=TOKEN)
    assert code(access=access) is None
    assert code("POST", headers=JSON, access=access) == (401, "invalid_api_key")
    assert code("DELETE", access=access) == (401, "invalid_api_key")
    assert code("POST", headers=bearer(TOKEN), access=access) is None


def test_key_does_not_stand_in_for_the_token() -> None:
    access = Access(token=TOKEN)
    assert code(headers=bearer(KEY), policy=OPEN, access=access) is None
    assert code(headers=bearer(TOKEN), policy=OPEN, access=access) is None
    assert code(policy=OPEN, access=access) == (401, "invalid_api_key")
    assert code("POST", headers=bearer(KEY), policy=OPEN, access=access) == (
        401,
        "invalid_api_key",
    )


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    body = await request.body()
    await JSONResponse({"path": request.url.path, "length": len(body)})(scope, receive, send)


def client(policy: Policy = LOCAL, access: Access | None = None) -> httpx.AsyncClient:
    guard: Any = Guard(echo, policy, access or Access())
    return httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://localhost:9337")


async def test_admitted_request_reaches_the_application() -> None:
    response = await client().post("/x", json={"a": 1})
    assert response.json() == {"path": "/x", "length": 7}
    assert "access-control-allow-origin" not in response.headers


async def test_refusal_is_in_openais_shape() -> None:
    response = await client(OPEN).get("/x")
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"


async def test_local_page_can_read_the_response() -> None:
    origin = "http://localhost:3000"
    response = await client(OPEN).get("/x", headers={"origin": origin})
    assert response.status_code == 401
    assert response.headers["access-control-allow-origin"] == origin
    assert response.headers["vary"] == "origin"
    assert "retry-after" in response.headers["access-control-expose-headers"]


async def test_foreign_page_cannot_read_even_the_refusal() -> None:
    response = await client().get("/x", headers={"origin": "https://evil.example"})
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


async def test_preflight_is_answered_without_a_key() -> None:
    response = await client(OPEN).options(
        "/v1/chat/completions",
        headers={
            "origin": "http://localhost:3000",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, x-stainless-os",
            "access-control-request-private-network": "true",
        },
    )
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert response.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["access-control-allow-private-network"] == "true"


async def test_foreign_preflight_is_refused() -> None:
    response = await client().options(
        "/", headers={"origin": "null", "access-control-request-method": "POST"}
    )
    assert response.status_code == 403


async def test_websocket_is_refused() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await Guard(echo, LOCAL, Access())({"type": "websocket"}, _never, send)
    assert sent == [{"type": "websocket.close"}]


async def test_counted_body_over_the_limit_is_refused() -> None:
    async def chunks() -> Any:
        for _ in range(9):
            yield b" " * 2**20

    response = await client().post("/x", content=chunks(), headers=JSON)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


async def test_declared_body_over_the_limit_is_read_away() -> None:
    response = await client().post("/x", content=b" " * (BODY_LIMIT + 1), headers=JSON)
    assert response.status_code == 413


async def test_body_at_the_limit_is_read() -> None:
    response = await client().post("/x", content=b" " * BODY_LIMIT, headers=JSON)
    assert response.json()["length"] == BODY_LIMIT


async def _never() -> Message:
    await trio.sleep_forever()
    raise AssertionError


def posted() -> Scope:
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    return {"type": "http", "method": "POST", "path": "/", "headers": headers}


async def test_slow_body_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await Guard(echo, LOCAL, Access())(posted(), _never, send)
    assert sent[0]["status"] == 408
    assert trio.current_time() == pytest.approx(BODY_TIMEOUT, abs=2)


async def test_client_that_leaves_within_its_body_gets_nothing() -> None:
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    await Guard(echo, LOCAL, Access())(posted(), gone, send)
