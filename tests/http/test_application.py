import httpx
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from p2p_mesh.errors import Overloaded
from p2p_mesh.http.application import Boundary, application
from p2p_mesh.http.guard import Access, Policy
from p2p_mesh.journal import Entry, Journal


async def fine(_request: Request) -> Response:
    return PlainTextResponse("fine")


async def busy(_request: Request) -> Response:
    raise Overloaded("the queue is full", retry_after=7)


async def broken(_request: Request) -> Response:
    raise ZeroDivisionError("secret")


async def teapot(_request: Request) -> Response:
    raise HTTPException(418, "short and stout")


def client(*listeners: list[Entry]) -> httpx.AsyncClient:
    journal = Journal(*(entries.append for entries in listeners))
    routes = [Route(f"/{one.__name__}", one) for one in (fine, busy, broken, teapot)]
    app = application(routes, policy=Policy(), access=Access(), journal=journal)
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://localhost",
    )


async def test_route_answers() -> None:
    assert (await client().get("/fine")).text == "fine"


async def test_guard_stands_before_it() -> None:
    assert (await client().get("/fine", headers={"host": "evil.example"})).status_code == 403


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/fine/", 404, "not_found"),
        ("DELETE", "/fine", 405, "method_not_allowed"),
        ("GET", "/busy", 429, "overloaded"),
        ("GET", "/teapot", 418, "error"),
        ("GET", "/broken", 500, "internal_error"),
    ],
)
async def test_failures_have_one_shape(method: str, path: str, status: int, code: str) -> None:
    response = await client().request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code


async def test_405_says_what_is_allowed() -> None:
    response = await client().delete("/fine")
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}


async def test_429_says_when_to_come_back() -> None:
    assert (await client().get("/busy")).headers["retry-after"] == "7"


async def test_unforeseen_error_goes_to_the_journal_only() -> None:
    entries: list[Entry] = []
    response = await client(entries).get("/broken")
    assert "secret" not in response.text
    assert [entry.event for entry in entries] == ["http_failed"]
    assert entries[0].fields["reason"] == "ZeroDivisionError('secret')"
    assert "in broken" in entries[0].fields["traceback"]


async def test_response_that_broke_off_is_left_without_its_end() -> None:
    entries: list[Entry] = []
    sent: list[Message] = []

    async def half(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/half"}
    await Boundary(half, Journal(entries.append))(scope, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert entries[0].fields["path"] == "/half"
