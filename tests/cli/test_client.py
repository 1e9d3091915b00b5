"""The commands find the running node by node.json, and talk to its management port."""

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2p_mesh import state
from p2p_mesh.cli.client import Client
from p2p_mesh.cli.main import execute
from p2p_mesh.errors import LocalError, Unavailable

STATUS: dict[str, Any] = {
    "name": "alice", "version": "0.1.0", "uptime_s": 61.2, "api_url": "http://localhost:9337/v1",
    "console_url": "http://localhost:3131", "peer_id": "12D3", "mesh_id": None, "role": "member",
    "models": [
        {"id": "tiny", "state": "loading", "progress": 0.4, "error": "", "context": None,
         "slots": None, "active": 0, "queued": 0},
        {"id": "big", "state": "failed", "progress": 0, "error": "too big", "context": 8,
         "slots": 1, "active": 1, "queued": 2},
    ],
    "unloading": [{"id": "old", "active": 1, "queued": 0}],
    "standby": [{"id": "spare", "digest": "0123456789abcdef", "size_bytes": 2_500_000_000}],
    "fetching": [{"model": "large", "done_bytes": 250_000_000, "total_bytes": 1_000_000_000,
                  "rate": 12_000_000, "from": ["12D3", "12D4"]}],
    "demand": {"tiny": 12.34}, "owners": ["mo1_x"], "is_revoked": True, "revoked_peers": 2,
    "endpoints": [
        {"name": "h:8080", "state": "failed", "reason": "wants a key"},
        {"name": "h:8081", "state": "ready", "reason": ""},
    ],
    "peers": [{"peer_id": "12D4", "name": "bob", "state": "connected", "models": ["m", "n"]}],
    "plugins": [{"name": "echo", "version": "1", "state": "skipped", "reason": "broken"}],
}  # fmt: skip


class Handler(http.server.BaseHTTPRequestHandler):
    """A management port that knows one token."""

    def do_GET(self) -> None:
        self._reply(200, STATUS)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != "Bearer secret":
            self._reply(401, {"error": {"message": "a token is needed"}})
        elif body["role"] == "client":
            self._reply(400, {"error": {"message": "no mesh key here"}})
        else:
            self._reply(200, {"invite": f"mn1_{body['until']}"})

    def _reply(self, status: int, body: object) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None: ...


def node_file(url: str, pid: int, token: str = "secret") -> state.NodeFile:
    return state.NodeFile(pid=pid, name="alice", api_url="", console_url=url, token=token)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Path]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        with state.published(tmp_path, node_file(url, os.getpid())):
            yield tmp_path
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_status_for_people(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["status", "--data-dir", str(node)]) == 0
    shown = capsys.readouterr().out
    for text in (
        "alice  meshnode 0.1.0, up 61 s",
        "40%",
        "too big",
        "bob",
        "m, n",
        "starting",
        "ENDPOINT",
        "h:8080",
        "FETCHING",
        "25%",
        "2 peers",
        "failed",
        "wants a key",
        "UNLOADING",
        "12.3",
        "spare",
        "2.5 GB",
        "0123456789ab",
        "mo1_x",
        "goes on alone",
        "2 of this mesh's peers",
    ):
        assert text in shown


def test_status_as_json_is_what_the_node_says(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["status", "--json", "--data-dir", str(node)]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


def test_data_directory_may_come_from_the_environment(
    node: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHNODE_DATA_DIR", str(node))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # never used for this machine
    assert execute(["status"]) == 0


def test_plugins_of_the_running_node(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["plugins", "--data-dir", str(node)]) == 0
    assert "skipped" in capsys.readouterr().out


def test_invite(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["invite", "--data-dir", str(node)]) == 0
    assert capsys.readouterr().out == "mn1_None\n"
    assert execute(["invite", "--json", "--data-dir", str(node)]) == 0
    assert json.loads(capsys.readouterr().out)["invite"] == "mn1_None"


def test_nodes_refusal_is_passed_on(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["invite", "--role", "client", "--data-dir", str(node)]) == 1
    assert capsys.readouterr().err == "Error: no mesh key here\n"


def test_node_that_was_killed_is_not_found(tmp_path: Path) -> None:
    with (
        state.published(tmp_path, node_file("http://127.0.0.1:9", 2**22 + 1)),
        pytest.raises(Unavailable, match="no node runs"),
    ):
        Client.find(str(tmp_path))


def test_node_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with (
        state.published(tmp_path, node_file("http://127.0.0.1:9", os.getpid())),
        pytest.raises(Unavailable, match=rf"process {os.getpid()}\) does not answer"),
    ):
        Client.find(str(tmp_path)).get("/api/status")


def test_wrong_token_is_said(node: Path) -> None:
    running = state.running(node)
    assert running is not None
    with pytest.raises(LocalError, match="a token is needed"):
        Client(node_file(running.console_url, 1, token="other")).post("/api/invites", {})
