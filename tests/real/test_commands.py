"""Commands on nodes that run: models come and go, owners are obeyed, a peer is put out."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import trio

from p2p_mesh.testing.cluster import NodeProcess, start_node
from p2p_mesh.testing.events import post_stream

LONG = {"model": "slow", "messages": [{"role": "user", "content": "hello"}], "seed": 3,
        "max_tokens": 400, "temperature": 2, "top_k": 0, "min_p": 0}  # fmt: skip


def command(directory: Path, *words: str) -> tuple[int, Any, str]:
    """The exit code, the JSON and the error of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "p2p_mesh", *words, "--data-dir", str(directory), "--json"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


async def tell(directory: Path, *words: str) -> Any:
    code, found, error = await trio.to_thread.run_sync(command, directory, *words)
    assert code == 0, error
    return found


async def refused(directory: Path, *words: str) -> str:
    code, _, error = await trio.to_thread.run_sync(command, directory, *words)
    assert code != 0
    return error


async def served(directory: Path) -> list[str]:
    return [one["id"] for one in (await tell(directory, "status"))["models"]]


async def test_model_comes_and_goes_and_its_answer_ends_well(
    tmp_path: Path, tiny: Path, slow: Path
) -> None:
    async with start_node(tmp_path / "a", "--model", str(tiny), "--threads", "1") as node:
        await node.wait("ready")
        assert (await tell(tmp_path / "a", "load", str(slow)))["state"] == "ready"
        assert "served already" in await refused(tmp_path / "a", "load", "slow")
        async with post_stream(f"{node.url()}/v1/chat/completions", LONG) as events:
            await events.next()
            assert (await tell(tmp_path / "a", "unload", "slow")) == {
                "model": "slow", "waited_for": 1
            }  # fmt: skip
            assert "error" not in (await events.all())[-1]
        assert await served(tmp_path / "a") == ["tiny"]
        (held,) = (await tell(tmp_path / "a", "status"))["standby"]
        assert (await tell(tmp_path / "a", "load", held["digest"][:8]))["id"] == "slow"


async def test_owner_is_obeyed_and_nobody_else(tmp_path: Path, tiny: Path) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    owner = (await tell(here, "owner", "key"))["owner"]
    arguments = ("--name", "box", "--model", str(tiny), "--accept-owner", owner)
    async with start_node(tmp_path / "box", *arguments) as box:
        invite = (await box.wait("ready"))["invite"]
        async with (
            start_node(here, "--client", "--join", invite) as mine,
            start_node(other, "--client", "--join", invite) as theirs,
        ):
            for node in (mine, theirs):
                await node.wait("ready")
            await _digest(here, box)
            done = await tell(here, "control", "box", "unload", "tiny")
            assert done["model"]["id"] == "tiny"
            assert await served(tmp_path / "box") == []
            assert (await tell(here, "control", "box", "load", "tiny"))["model"]["state"] == "ready"
            assert "meshnode owner key" in await refused(other, "control", "box", "stop")
            await tell(other, "owner", "key")
            assert "does not accept" in await refused(other, "control", "box", "stop")
            offence = await box.wait("bad_peer")
            assert offence["peer"] == (await theirs.wait("ready"))["peer_id"]
            await tell(here, "control", "box", "stop")
            with trio.fail_after(5):
                assert await box.process.wait() == 0
        assert (await box.wait("stopping"))["signal"] is None


async def _digest(here: Path, box: NodeProcess) -> None:
    """Waits until the box has read its file."""
    with trio.fail_after(10):
        while not (await tell(here, "control", "box", "list"))["models"][0]["digest"]:
            await trio.sleep(0.1)


async def test_peer_is_put_out_by_its_name(tmp_path: Path, tiny: Path) -> None:
    async with start_node(tmp_path / "a", "--model", str(tiny)) as alice:
        await alice.wait("ready")
        invite = (await tell(tmp_path / "a", "invite", "--uses", "1"))["invite"]
        arguments = ("--name", "bob", "--model", str(tiny), "--join", invite)
        async with start_node(tmp_path / "b", *arguments) as bob:
            ready = await bob.wait("ready")
            await alice.wait("model_offered")
            assert (await tell(tmp_path / "a", "revoke", "bob"))["peers"] == [ready["peer_id"]]
            await bob.wait("revoked", 5)
            await alice.wait("peer_left", 5)
            made = await tell(tmp_path / "a", "invites")
            assert [one["used"] for one in made if one["uses"]] == [1]
