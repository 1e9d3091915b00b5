import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from p2p_mesh.console.app import PAGE, create_app
from p2p_mesh.core.control import Command, ListModels, LoadModel, StopNode, UnloadModel
from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.core.plans import Stage, Topology, Wanted
from p2p_mesh.core.records import Role
from p2p_mesh.errors import LocalError
from p2p_mesh.http.guard import Policy
from p2p_mesh.journal import Entry, Journal

TOKEN = "from-node.json"
DIGEST = Digest("ab" * 32)
STATUS = {"name": "box", "models": [], "peers": []}
STATIC = Path("p2p_mesh/console/static")


class FakeConsole:
    def __init__(self, *, holds_key: bool = True) -> None:
        self.invited: list[tuple[Role, int | None, int | None, int | None]] = []
        self.revoked: list[str] = []
        self.planned: list[Wanted] = []
        self.shown: dict[str, Any] = STATUS
        self._holds_key = holds_key

    def status(self) -> dict[str, Any]:
        return self.shown

    async def invite(
        self, role: Role, until: int | None, uses: int | None = None, join_by: int | None = None
    ) -> str:
        if not self._holds_key:
            raise LocalError("this node does not hold the key of its mesh")
        self.invited.append((role, until, uses, join_by))
        return "mesh-token"

    async def plan(self, wanted: Wanted) -> dict[str, Any]:
        self.planned.append(wanted)
        return {"choice": "stages"}

    async def invites(self) -> list[dict[str, Any]]:
        return [{"id": "0123456789ab"}]

    async def revoke(self, text: str) -> dict[str, Any]:
        self.revoked.append(text)
        return {"version": 1, "peers": [text]}


class FakeCommands:
    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    async def load(self, reference: str) -> str:
        self.told.append(("load", reference))
        return "m"

    async def unload(self, reference: str) -> str:
        self.told.append(("unload", reference))
        return "m"

    async def order(self, peer: str, command: Command) -> dict[str, Any]:
        self.told.append((peer, command))
        return {"models": []}


async def greet(request: Request) -> Response:
    return JSONResponse({"method": request.method, "path": request.url.path})


def client(
    console: FakeConsole | None = None,
    commands: FakeCommands | None = None,
    *,
    policy: Policy | None = None,
    key: str | None = None,
    entries: list[Entry] | None = None,
) -> httpx.AsyncClient:
    app: Any = create_app(
        console or FakeConsole(),
        commands or FakeCommands(),
        policy=policy or Policy(),
        token=TOKEN,
        routes={"hello": [Route("/greet", greet, methods=["GET", "POST"])]},
        journal=Journal((entries if entries is not None else []).append),
    )
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://localhost:3131",
        headers={"authorization": f"Bearer {key}"} if key else {},
    )


async def test_status_is_shown() -> None:
    response = await client().get("/api/status")
    assert response.json() == STATUS
    assert response.headers["cache-control"] == "no-store"


async def test_metrics_are_the_status_in_another_form() -> None:
    resources = {"memory_total": 2, "memory_free": 1}
    console = FakeConsole()
    console.shown = {**STATUS, "version": "1", "uptime_s": 1.0, "resources": resources}
    response = await client(console).get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "meshnode_memory_free_bytes 1\n" in response.text


async def test_invite_is_made() -> None:
    console = FakeConsole()
    http = client(console, key=TOKEN)
    assert (await http.post("/api/invites", json={})).json() == {"invite": "mesh-token"}
    await http.post("/api/invites", json={"role": "client", "until": 1_800_000_000})
    await http.post("/api/invites", json={"uses": 2, "join_by": 1_800_000_000})
    assert console.invited == [
        ("member", None, None, None),
        ("client", 1_800_000_000, None, None),
        ("member", None, 2, 1_800_000_000),
    ]


async def test_invites_are_shown() -> None:
    response = await client().get("/api/invites")
    assert response.json() == {"invites": [{"id": "0123456789ab"}]}


async def test_invite_or_peer_is_revoked() -> None:
    console = FakeConsole()
    response = await client(console, key=TOKEN).post("/api/revocations", json={"what": "12D3"})
    assert response.json() == {"version": 1, "peers": ["12D3"]}
    assert console.revoked == ["12D3"]


async def test_plan_is_asked_for() -> None:
    console = FakeConsole()
    http = client(console, key=TOKEN)
    assert (await http.post("/api/plan", json={"model": "m"})).json() == {"choice": "stages"}
    pinned = {"node": "bob", "layer_start": 0, "layer_end": 4}
    await http.post("/api/plan", json={"model": "m", "flash": True, "shards": False})
    await http.post("/api/plan", json={
        "model": "m", "split": True, "ctx": 64, "parallel": 2, "max_rtt": 20,
        "stages": {"model": "m", "manifest_sha256": DIGEST, "stages": [pinned]},
    })  # fmt: skip
    assert console.planned == [
        Wanted(model="m"),
        Wanted(model="m", flash=True, shards=False),
        Wanted(
            model="m", split=True, context=64, slots=2, most_round_trip=0.02,
            topology=Topology(
                model="m", manifest_sha256=DIGEST,
                stages=(Stage(node=PeerId("bob"), layer_start=0, layer_end=4),),
            ),
        ),
    ]  # fmt: skip


async def test_plan_that_is_none_is_refused() -> None:
    console = FakeConsole()
    response = await client(console, key=TOKEN).post(
        "/api/plan", json={"model": "m", "stages": {"model": "m"}}
    )
    assert response.status_code == 400
    assert "manifest_sha256" in response.json()["error"]["message"]
    assert console.planned == []


async def test_models_are_loaded_and_unloaded() -> None:
    commands = FakeCommands()
    http = client(commands=commands, key=TOKEN)
    for name in ("load", "unload"):
        assert (await http.post(f"/api/{name}", json={"model": "0123"})).json() == {"model": "m"}
    assert commands.told == [("load", "0123"), ("unload", "0123")]


@pytest.mark.parametrize(
    ("body", "command"),
    [
        ({"command": "list"}, ListModels()),
        ({"command": "stop"}, StopNode()),
        ({"command": "load", "digest": DIGEST}, LoadModel(digest=DIGEST)),
        ({"command": "unload", "digest": DIGEST}, UnloadModel(digest=DIGEST)),
    ],
)
async def test_orders_go_to_a_peer(body: dict[str, Any], command: Command) -> None:
    commands = FakeCommands()
    http = client(commands=commands, key=TOKEN)
    response = await http.post("/api/orders", json={"peer": "12D3", **body})
    assert response.json() == {"models": []}
    assert commands.told == [("12D3", command)]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("revocations", {}, "what"),
        ("revocations", {"what": ""}, "what"),
        ("revocations", {"what": "x" * 20_000}, "what"),
        ("plan", {}, "model"),
        ("plan", {"model": "m", "ctx": 1}, "ctx"),
        ("plan", {"model": "m", "split": 1}, "split"),
        ("plan", {"model": "m", "max_rtt": 0}, "max_rtt"),
        ("plan", {"model": "m", "stages": []}, "stages"),
        ("plan", {"model": "m", "force": True}, "force"),
        ("load", {"model": 5}, "model"),
        ("load", {"model": "m", "force": True}, "force"),
        ("unload", {}, "model"),
        ("orders", {"peer": "12D3", "command": "explode"}, "command"),
        ("orders", {"peer": "12D3", "command": "load"}, "digest"),
        ("orders", {"peer": "12D3", "command": "load", "digest": "/etc/passwd"}, "digest"),
        ("orders", {"peer": "12D3", "command": "stop", "digest": DIGEST}, "digest"),
    ],
)
async def test_wrong_command_is_named(path: str, body: dict[str, Any], param: str) -> None:
    commands, console = FakeCommands(), FakeConsole()
    response = await client(console, commands, key=TOKEN).post(f"/api/{path}", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert (commands.told, console.revoked, console.planned) == ([], [], [])


@pytest.mark.parametrize("path", ["revocations", "plan", "load", "unload", "orders"])
async def test_whatever_changes_something_needs_the_token(path: str) -> None:
    for key in (None, "wrong"):
        response = await client(key=key).post(f"/api/{path}", json={})
        assert response.status_code == 401


async def test_invite_needs_the_token() -> None:
    console = FakeConsole()
    for key in (None, "wrong"):
        response = await client(console, key=key).post("/api/invites", json={})
        assert response.status_code == 401
    assert console.invited == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"role": "owner"}, "role"),
        ({"role": 5}, "role"),
        ({"until": -1}, "until"),
        ({"until": "tomorrow"}, "until"),
        ({"uses": 0}, "uses"),
        ({"join_by": "tomorrow"}, "join_by"),
        ({"seeds": 1}, "seeds"),
    ],
)
async def test_wrong_invite_is_named(body: dict[str, Any], param: str) -> None:
    response = await client(key=TOKEN).post("/api/invites", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_node_without_the_mesh_key_says_so() -> None:
    response = await client(FakeConsole(holds_key=False), key=TOKEN).post("/api/invites", json={})
    assert response.status_code == 400
    assert "does not hold the key" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", PAGE)
async def test_page_is_served_under_a_strict_policy(path: str) -> None:
    http = client(policy=Policy(listen=True, api_key="key"))
    response = await http.get(path)
    name, media_type = PAGE[path]
    assert response.content == (STATIC / name).read_bytes()
    assert response.headers["content-type"] == media_type
    assert response.headers["content-security-policy"].startswith("default-src 'self';")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert (await http.head(path)).status_code == 200


async def test_listening_node_shows_nothing_without_a_key() -> None:
    policy = Policy(listen=True, api_key="key", hostname="box")
    for key, status in ((None, 401), ("wrong", 401), ("key", 200), (TOKEN, 200)):
        http = client(policy=policy, key=key)
        assert (await http.get("/api/status")).status_code == status
        assert (await http.get("/plugins/hello/greet")).status_code == status


async def test_api_key_makes_no_invites() -> None:
    http = client(policy=Policy(listen=True, api_key="key"), key="key")
    assert (await http.post("/api/invites", json={})).status_code == 401


async def test_plugins_have_their_own_paths() -> None:
    response = await client().get("/plugins/hello/greet")
    assert response.json() == {"method": "GET", "path": "/plugins/hello/greet"}
    assert (await client().get("/plugins/hello/other")).status_code == 404
    assert (await client().get("/plugins/other/greet")).status_code == 404


async def test_changing_through_a_plugin_needs_the_token() -> None:
    assert (await client().post("/plugins/hello/greet", json={})).status_code == 401
    response = await client(key=TOKEN).post("/plugins/hello/greet", json={})
    assert response.json()["method"] == "POST"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/other", 404), ("GET", "/api/load", 405), ("GET", "/static/console.js", 404)],
)
async def test_other_paths_fail_in_one_shape(method: str, path: str, status: int) -> None:
    response = await client().request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "headers",
    [{"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}],
)
async def test_foreign_pages_are_refused(headers: dict[str, str]) -> None:
    for path in ("/", "/api/status"):
        assert (await client(key=TOKEN).get(path, headers=headers)).status_code == 403
    assert (await client(key=TOKEN).post("/api/invites", json={}, headers=headers)).status_code == (
        403
    )


def test_page_asks_nobody_else_and_writes_text_only() -> None:
    page = "".join((STATIC / name).read_text() for name, _ in PAGE.values())
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}
    for danger in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "style="):
        assert danger not in page
    assert not re.search(r"<script(?![^>]*src=)|\son[a-z]+=", page)


def test_page_shows_every_part_of_the_status() -> None:
    script = (STATIC / "console.js").read_text()
    for name in ("name", "mesh_name", "role", "api_url", "p2p_addrs", "models", "peers", "plugins",
                 "standby", "unloading", "revoked_peers", "is_revoked", "owners"):  # fmt: skip
        assert f"status.{name}" in script


def test_page_asks_for_invites_where_the_node_has_some() -> None:
    script = (STATIC / "console.js").read_text()
    assert "if (status.is_holder) await refreshInvites();" in script


def test_page_shows_where_a_model_runs() -> None:
    assert "model.device" in (STATIC / "console.js").read_text()
    assert "Runs on" in (STATIC / "index.html").read_text()
