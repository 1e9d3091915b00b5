"""Files of published packages, from a hub on this machine through the huggingface_hub library."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from huggingface_hub import constants

from p2p_mesh.core.reference import HubName, read_hub
from p2p_mesh.errors import ModelError, Unavailable
from p2p_mesh.serve.hub import Hub
from p2p_mesh.testing.hub import LocalHub, serve_hub

SIZE = 300_000
NAME = HubName("mesh/qwen-layers")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """One that has a repository of one file."""
    (tmp_path / "repo" / "shared").mkdir(parents=True)
    (tmp_path / "repo" / "shared" / "a.gguf").write_bytes(bytes(range(256)) * (SIZE // 256))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)
    with serve_hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        found.publish(NAME.repo, tmp_path / "repo")
        yield found


@pytest.fixture
def ours(tmp_path: Path) -> Hub:
    return Hub(tmp_path / "cache")


async def test_name_is_a_commit(hub: LocalHub, ours: Hub) -> None:
    found = await ours.resolve(read_hub("hf://mesh/qwen-layers"))
    assert found.is_fixed
    assert await ours.resolve(found) is found
    assert len(hub.asked) == 1


async def test_file_comes_with_progress(hub: LocalHub, ours: Hub, tmp_path: Path) -> None:
    seen: list[float] = []
    name = await ours.resolve(NAME)
    path = await ours.download(name, "shared/a.gguf", progress=seen.append)
    assert path.read_bytes() == (tmp_path / "repo" / "shared" / "a.gguf").read_bytes()
    assert path.is_relative_to(tmp_path / "cache")
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


async def test_file_comes_once(hub: LocalHub, ours: Hub) -> None:
    name = await ours.resolve(NAME)
    first = await ours.download(name, "shared/a.gguf")
    asked = len(hub.asked)
    assert await ours.download(name, "shared/a.gguf") == first
    assert len(hub.asked) == asked


async def test_nothing_comes_of_a_file_of_another_size(hub: LocalHub, ours: Hub) -> None:
    name, size = await ours.resolve(NAME), bytes(range(256)) * (SIZE // 256)
    with pytest.raises(
        ModelError, match=r"shared/a\.gguf of hf://.* has \d+ bytes, and 7 would be"
    ):
        await ours.download(name, "shared/a.gguf", size=7)
    assert "GET" not in {method for method, path in hub.asked if "a.gguf" in path}
    await ours.download(name, "shared/a.gguf", size=len(size))


async def test_size_of_a_file_in_the_cache_is_asked_of_nobody(hub: LocalHub, ours: Hub) -> None:
    name = await ours.resolve(NAME)
    path = await ours.download(name, "shared/a.gguf")
    asked = len(hub.asked)
    assert await ours.download(name, "shared/a.gguf", size=path.stat().st_size) == path
    with pytest.raises(ModelError, match="would be right"):
        await ours.download(name, "shared/a.gguf", size=7)
    assert len(hub.asked) == asked


async def test_cut_download_is_resumed(
    hub: LocalHub, ours: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the library waits a second before it asks
    name = await ours.resolve(NAME)
    hub.cut, hub.cuts = 100_000, 2
    path = await ours.download(name, "shared/a.gguf")
    assert path.read_bytes() == bytes(range(256)) * (SIZE // 256)
    ranges = [one for _, one in hub.asked if "bytes=" in one]
    assert len(ranges) == 2
    assert all(int(one.rpartition("=")[2].rstrip("-")) >= 65_536 for one in ranges)


async def test_download_that_nobody_wants_ends(hub: LocalHub, ours: Hub) -> None:
    name = await ours.resolve(NAME)
    seen: list[float] = []
    with trio.CancelScope() as scope:

        def enough(done: float) -> None:
            seen.append(done)
            scope.cancel()

        await ours.download(name, "shared/a.gguf", progress=enough)
    assert scope.cancelled_caught
    assert seen[-1] < 1.0


@pytest.mark.parametrize(("name", "path", "reason"), [
    ("hf://mesh/other@" + "0" * 40, "a", "there is no mesh/other, or it is private"),
    ("hf://mesh/qwen-layers@" + "0" * 40, "a", "has no revision '0000"),
    ("hf://mesh/qwen-layers@main", "none.gguf", r"has no file 'none\.gguf'"),
])  # fmt: skip
async def test_what_is_not_there_is_named(
    hub: LocalHub, ours: Hub, name: str, path: str, reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        await ours.download(read_hub(name), path)


async def test_name_that_means_nothing_is_named(hub: LocalHub, ours: Hub) -> None:
    with pytest.raises(ModelError, match="there is no mesh/other, or it is private"):
        await ours.resolve(HubName("mesh/other"))
    with pytest.raises(ModelError, match="has no revision 'v9'"):
        await ours.resolve(HubName(NAME.repo, "v9"))
    with pytest.raises(ModelError, match="is no name of a repository"):
        await ours.resolve(HubName("a--b/c..d"))


@pytest.mark.parametrize(("status", "kind", "reason"), [
    (401, ModelError, "log in"), (403, ModelError, "log in"), (404, ModelError, "there is no"),
    (418, Unavailable, "answers 418"),
])  # fmt: skip
async def test_refusal_is_said_in_words(
    hub: LocalHub, ours: Hub, status: int, kind: type[Exception], reason: str
) -> None:
    hub.status = status
    with pytest.raises(kind, match=reason):
        await ours.resolve(NAME)


async def test_hub_that_answers_nonsense_is_unavailable(
    hub: LocalHub, ours: Hub, tmp_path: Path
) -> None:
    hub.repos[NAME.repo] = {"nonsense": tmp_path}
    with pytest.raises(Unavailable, match="answers 'nonsense' for the commit"):
        await ours.resolve(NAME)


async def test_gated_repository_says_what_to_do(hub: LocalHub, ours: Hub) -> None:
    hub.status, hub.code = 403, "GatedRepo"
    with pytest.raises(ModelError, match="for those who asked for it"):
        await ours.resolve(NAME)


async def test_without_a_connection_the_last_commit_counts(
    hub: LocalHub, ours: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ours.download(NAME, "shared/a.gguf")  # by the branch: the library remembers its commit
    name = await ours.resolve(NAME)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert await ours.resolve(NAME) == name
    assert (await ours.download(name, "shared/a.gguf")).exists()


async def test_hub_out_of_reach_is_unavailable(ours: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="hf://mesh/qwen-layers@main cannot be reached"):
        await ours.resolve(NAME)
    with pytest.raises(Unavailable, match=r"a\.gguf of hf://mesh.* cannot be reached"):
        await ours.download(HubName(NAME.repo, "0" * 40), "a.gguf")


async def test_connection_that_breaks_again_and_again_is_unavailable(
    hub: LocalHub, ours: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    name = await ours.resolve(NAME)
    hub.cut, hub.cuts = 0, 1000
    with pytest.raises(Unavailable, match="cannot be reached"):
        await ours.download(name, "shared/a.gguf")
    hub.cuts = 0
    assert (await ours.download(name, "shared/a.gguf")).exists()
