"""A command line of its own: no settings, folders or variables of whoever runs the tests. And a
management port that answers what a test wants.
"""

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2p_mesh import state
from p2p_mesh.settings import ENVIRONMENT


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(ENVIRONMENT):
            monkeypatch.delenv(name)
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


class Port:
    """The management port of a node, in a data directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)
        self.answers: dict[str, list[Any]] = {}
        """By path: what is answered, one after the other, the last for ever. An error is a pair
        of status and body.
        """
        self.asked: list[tuple[str, Any]] = []

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        if body is not None:
            self.asked.append((path, body))
        waiting = self.answers[path]
        found = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        return found if isinstance(found, tuple) else (200, found)


def refusal(message: str, code: str = "bad_use", status: int = 400) -> tuple[int, Any]:
    return status, {"error": {"message": message, "code": code}}


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    made = Port(tmp_path / "node")
    (tmp_path / "node").mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(*made.answer(self.path, None))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._reply(*made.answer(self.path, body))

        def _reply(self, status: int, body: Any) -> None:
            raw = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    node = state.NodeFile(pid=os.getpid(), name="x", api_url="", console_url=url, token="t")
    try:
        with state.published(Path(made.directory), node):
            yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
