"""A hub on this machine, as far as the huggingface_hub library asks one for single files: what a
revision means, and files with their ranges. It can cut connections in the middle.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

_INFO = re.compile(r"/api/models/([^/]+/[^/]+)/revision/(.+)")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
CHUNK = 1 << 16


@dataclass
class LocalHub:
    """What is published, and how it misbehaves."""

    url: str = ""
    cut: int = 0
    """Bytes of an answer after which its connection is dropped,"""
    cuts: int = 0
    """for so many answers."""
    status: int = 0
    """What all is answered with; 0: what is right."""
    code: str = ""
    """The hub's own word for that."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each request; of a range, with `bytes=...` behind it."""
    repos: dict[str, dict[str, Path]] = field(default_factory=dict)
    """Folders by repository and commit; the last is `main`."""

    def publish(self, repo: str, folder: Path) -> str:
        """Makes a folder the newest commit of a repository; returns the commit."""
        texts = "".join(f"{path}:{path.stat().st_mtime_ns}" for path in sorted(folder.rglob("*")))
        commit = hashlib.sha1(f"{repo}{texts}".encode()).hexdigest()
        self.repos.setdefault(repo, {})[commit] = folder
        return commit

    def commit(self, repo: str, revision: str) -> str | None:
        commits = self.repos.get(repo, {})
        if commits and revision == "main":
            return list(commits)[-1]
        return revision if revision in commits else None


@contextmanager
def serve_hub() -> Iterator[LocalHub]:
    """A hub that answers until the context is left."""
    hub = LocalHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of a client that has left."""


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"
    timeout = 5.0

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Nothing: a test that wants to know looks at `asked`."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        wanted = self.headers.get("Range", "")
        self.hub.asked.append((self.command, f"{path} {wanted}".strip()))
        if self.hub.status:
            self._refuse(self.hub.status, self.hub.code)
        elif match := _INFO.fullmatch(path):
            self._info(*match.groups())
        elif match := _FILE.fullmatch(path):
            self._file(*match.groups())
        else:
            self._refuse(404, "")

    def _info(self, repo: str, revision: str) -> None:
        commit = self.hub.commit(repo, revision)
        if commit is None:
            return self._unknown(repo)
        folder = self.hub.repos[repo][commit]
        names = [str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()]
        body = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in names]}
        return self._send(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _file(self, repo: str, revision: str, name: str) -> None:
        commit = self.hub.commit(repo, revision)
        if commit is None:
            return self._unknown(repo)
        path = self.hub.repos[repo][commit] / name
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        data = path.read_bytes()
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        if match is None:
            return self._send(200, headers, data)
        start, end = int(match[1]), int(match[2] or len(data) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return self._send(206, headers, data[start : end + 1])

    def _unknown(self, repo: str) -> None:
        known = repo in self.hub.repos
        self._refuse(404 if known else 401, "RevisionNotFound" if known else "RepoNotFound")

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, {"X-Error-Code": code, **(headers or {})}, b"")

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cuts and len(body) > self.hub.cut:
            self.hub.cuts -= 1
            self._write(body[: self.hub.cut])
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self._write(body)

    def _write(self, body: bytes) -> None:
        try:
            for at in range(0, len(body), CHUNK):
                self.wfile.write(body[at : at + CHUNK])
            self.wfile.flush()
        except OSError:
            self.close_connection = True  # the client has left
