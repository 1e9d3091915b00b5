"""The hub of the tests answers as a hub does."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from p2p_mesh.testing.hub import LocalHub, serve_hub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    (tmp_path / "a").write_bytes(b"0123456789")
    with serve_hub() as found:
        found.publish("ns/repo", tmp_path)
        yield found


def test_newest_commit_is_main(hub: LocalHub, tmp_path: Path) -> None:
    first = hub.commit("ns/repo", "main")
    (tmp_path / "b").write_bytes(b"new")
    second = hub.publish("ns/repo", tmp_path)
    assert hub.commit("ns/repo", "main") == second != first
    found = httpx.get(f"{hub.url}/api/models/ns/repo/revision/main").json()
    assert (found["sha"], {one["rfilename"] for one in found["siblings"]}) == (second, {"a", "b"})
    assert hub.commit("ns/none", "main") is None


def test_range_of_a_file_is_given(hub: LocalHub) -> None:
    url = f"{hub.url}/ns/repo/resolve/main/a"
    whole = httpx.head(url)
    assert (whole.headers["Content-Length"], whole.headers["X-Repo-Commit"]) == (
        "10", hub.commit("ns/repo", "main"),
    )  # fmt: skip
    found = httpx.get(url, headers={"Range": "bytes=7-"})
    assert (found.status_code, found.content) == (206, b"789")
    assert found.headers["Content-Range"] == "bytes 7-9/10"
    assert hub.asked[-1] == ("GET", "/ns/repo/resolve/main/a bytes=7-")


def test_connection_is_cut_so_often(hub: LocalHub) -> None:
    url = f"{hub.url}/ns/repo/resolve/main/a"
    hub.cut, hub.cuts = 4, 1
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(url)
    assert httpx.get(url).content == b"0123456789"


@pytest.mark.parametrize(("path", "code"), [
    ("/ns/repo/resolve/main/none", "EntryNotFound"), ("/ns/none/resolve/main/a", "RepoNotFound"),
    ("/ns/repo/resolve/v9/a", "RevisionNotFound"), ("/else", ""),
    ("/api/models/ns/none/revision/main", "RepoNotFound"),
])  # fmt: skip
def test_what_is_not_there_is_refused(hub: LocalHub, path: str, code: str) -> None:
    found = httpx.get(hub.url + path)
    assert (found.is_error, found.headers["X-Error-Code"]) == (True, code)
    hub.status = 503
    assert httpx.get(hub.url + path).status_code == 503
