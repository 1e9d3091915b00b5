"""The whole path, with real processes: run, join, ask, stop, and what happens when things die."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import trio

from p2p_mesh.serve.store import DEFAULT_MODEL
from p2p_mesh.testing.cluster import NodeProcess, start_node
from p2p_mesh.testing.events import Events, post_stream
from p2p_mesh.testing.models import LOOPING, Lies, write_model
from tests.real.shared import facts

HELLO = [{"role": "user", "content": "hello"}]


async def chat(node: NodeProcess, model: str, **body: Any) -> httpx.Response:
    async with httpx.AsyncClient(timeout=30) as client:
        question = {"model": model, "messages": HELLO, "seed": 3, "max_tokens": 16, **body}
        return await client.post(f"{node.url()}/v1/chat/completions", json=question)


def long_answer(
    node: NodeProcess, model: str = "slow", max_tokens: int = 3000
) -> AbstractAsyncContextManager[Events]:
    """The events of a long streamed answer; the last may be an error."""
    question = {"model": model, "messages": HELLO, "seed": 3, "max_tokens": max_tokens,
                "temperature": 2, "top_k": 0, "min_p": 0}  # fmt: skip
    return post_stream(f"{node.url()}/v1/chat/completions", question)


async def until(holds: Callable[[], bool], seconds: float) -> float:
    """Waits until something holds; how long that took."""
    start = trio.current_time()
    with trio.fail_after(seconds):
        while not holds():
            await trio.sleep(0.02)
    return trio.current_time() - start


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent to notice does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def status(node: NodeProcess) -> dict[str, Any]:
    async with httpx.AsyncClient() as client:
        found: dict[str, Any] = (await client.get(f"{node.url('console')}/api/status")).json()
        return found


async def test_second_node_answers_for_a_model_it_does_not_have(
    alice: NodeProcess, bob: NodeProcess
) -> None:
    assert (facts(bob)["invite"], facts(bob)["models"]) == (None, [])
    answers = [await chat(node, "tiny") for node in (alice, bob)]
    assert [answer.status_code for answer in answers] == [200, 200]
    texts = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
    assert texts[0] == texts[1] != ""
    async with long_answer(bob, "tiny", 50) as events:
        found = await events.all()
    assert events.is_done
    assert len(found) > 10
    (peer,) = [one for one in (await status(bob))["peers"] if one["name"] == "alice"]
    assert peer["state"] == "connected"
    assert sorted(peer["models"]) == sorted(facts(alice)["models"])
    missing = await chat(bob, "gone")
    assert missing.status_code == 404
    assert "there are: caller, effort, judge" in missing.json()["error"]["message"]


async def test_log_is_json_and_shows_the_invite_once(tmp_path: Path, tiny: Path) -> None:
    async with start_node(tmp_path / "a", "--model", str(tiny)) as node:
        ready = await node.wait("ready")
        assert list(ready)[:4] == ["timestamp", "level", "event", "message"]
        wanted = {"api_url", "console_url", "peer_id", "p2p_addrs", "mesh_id", "invite", "models"}
        assert wanted <= set(ready)
        assert ready["models"] == ["tiny"]
        seen = [line["event"] for line in node.log]
        events = [one for one in seen if one != "model_loading"]  # said where that takes long
        assert events == ["api_ready", "model_ready", "ready"]
        assert await node.stop(signal.SIGTERM) == 0
        assert sum(ready["invite"] in json.dumps(line) for line in node.log) == 1
        assert node.text == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_stops_it_within_3_seconds(tmp_path: Path, slow: Path, number: int) -> None:
    async with start_node(tmp_path / "a", "--model", str(slow)) as node:
        await node.wait("ready")
        engines = node.engines()
        assert engines
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read_until_cut, node)
            await trio.sleep(0.5)
            with trio.fail_after(3):
                assert await node.stop(number) == 0
            nursery.cancel_scope.cancel()
        assert not any(map(is_alive, engines))
        assert not (node.data_dir / "node.json").exists()


async def _read_until_cut(node: NodeProcess) -> None:
    async with long_answer(node) as events:
        await events.all()


async def test_engines_do_not_outlive_a_killed_node(tmp_path: Path, slow: Path) -> None:
    async with start_node(tmp_path / "a", "--model", str(slow)) as node:
        await node.wait("ready")
        engines = node.engines()
        await node.stop(signal.SIGKILL)
        assert await until(lambda: not any(map(is_alive, engines)), 2) < 2
    # The killed node left node.json and its lock file behind: neither is in the way.
    async with start_node(tmp_path / "a", "--client") as again:
        await again.wait("ready")


async def test_disconnect_frees_the_slot(alice: NodeProcess, bob: NodeProcess) -> None:
    for asked in (alice, bob):
        async with long_answer(asked) as events:
            await events.next()
            assert await active(alice, "slow") == 1
        with trio.fail_after(1):
            while await active(alice, "slow"):
                await trio.sleep(0.01)


async def active(node: NodeProcess, model: str) -> int:
    """How many answers of that model are being written."""
    (found,) = [one for one in (await status(node))["models"] if one["id"] == model]
    return int(found["active"])


async def test_hostile_models_take_nothing_but_themselves(tmp_path: Path, tiny: Path) -> None:
    bad = {
        "wide": write_model(tmp_path / "wide.gguf", wide=True),
        "heads": write_model(tmp_path / "heads.gguf", lies=Lies(heads=7)),
        "loops": write_model(tmp_path / "loops.gguf", template=LOOPING),
    }
    arguments = [word for one in bad.values() for word in ("--model", one.path)]
    async with start_node(tmp_path / "a", "--model", str(tiny), *arguments) as node:
        ready = await node.wait("ready", 60)
        assert ready["models"] == ["tiny"]
        failed = {line["model"]: line["reason"] for line in node.log
                  if line["event"] == "model_failed"}  # fmt: skip
        assert set(failed) == set(bad)
        assert "template" in failed["loops"]
        assert (await chat(node, "tiny")).status_code == 200
        answer = await chat(node, "wide")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")


def refused(*arguments: str, **given: Any) -> tuple[int, str]:
    """The exit code and the one line of a node that does not start."""
    command = [sys.executable, "-m", "p2p_mesh", "run", "--port", "0", "--console", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, **given)
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stderr


async def test_second_node_on_a_data_directory_is_refused_by_name(alice: NodeProcess) -> None:
    code, said = await trio.to_thread.run_sync(
        lambda: refused("--client", "--data-dir", str(alice.data_dir))
    )
    assert code == 1
    assert f"alice (process {alice.pid}) runs on" in said


@pytest.mark.parametrize("flag", ["--port", "--console", "--p2p-port"])
def test_port_in_use_is_one_line(tmp_path: Path, flag: str) -> None:
    host = "" if flag == "--p2p-port" else "127.0.0.1"
    with socket.create_server((host, 0)) as server:
        port = str(server.getsockname()[1])
        code, said = refused("--data-dir", str(tmp_path), flag, port)
    assert code == 2
    assert said == f"Error: port {port} is in use; choose another with {flag}\n"


async def test_token_may_come_by_file_input_and_environment(
    tmp_path: Path, alice: NodeProcess
) -> None:
    invite = facts(alice)["invite"]
    (tmp_path / "token").write_text(invite)
    ways: list[tuple[tuple[str, ...], dict[str, str], bytes]] = [
        (("--join", f"@{tmp_path / 'token'}"), {}, b""),
        (("--join", "-"), {}, invite.encode() + b"\n"),
        ((), {"MESHNODE_JOIN": invite}, b""),
    ]
    for number, (arguments, environment, stdin) in enumerate(ways):
        async with start_node(
            tmp_path / str(number), "--client", *arguments, environment=environment,
            stdin=stdin,
        ) as guest:  # fmt: skip
            assert (await guest.wait("ready"))["mesh_id"] == facts(alice)["mesh_id"]
            await guest.wait("peer_joined")


async def test_restarted_node_is_who_it_was(tmp_path: Path, tiny: Path) -> None:
    said = []
    for _ in range(2):
        async with start_node(tmp_path / "a", "--standby", str(tiny)) as node:
            said.append(await node.wait("ready"))
            await node.stop(signal.SIGTERM)
    same = ("peer_id", "mesh_id", "invite", "p2p_addrs")
    assert [said[0][key] for key in same] == [said[1][key] for key in same]
    assert (tmp_path / "a" / "node.key").stat().st_mode & 0o777 == 0o600


async def test_joined_node_comes_back_without_a_token(tmp_path: Path, alice: NodeProcess) -> None:
    for arguments in (("--join", facts(alice)["invite"]), ()):
        async with start_node(tmp_path / "b", "--client", *arguments) as guest:
            await guest.wait("peer_joined")


async def test_commands_find_a_node_that_was_told_nothing(tmp_path: Path) -> None:
    def command(*words: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "p2p_mesh", *words, "--data-dir", str(tmp_path / "a"), "--json"],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)

    async with start_node(tmp_path / "a") as node:
        assert (await node.wait("ready"))["models"] == [DEFAULT_MODEL]
        found = await trio.to_thread.run_sync(command, "status")
        served = await status(node)
        for one in (found, served):  # what changes from one moment to the next
            del one["uptime_s"], one["resources"]["memory_free"]
        assert found == served
        plugins = await trio.to_thread.run_sync(command, "plugins")
        assert plugins == served["plugins"]
        invite = await trio.to_thread.run_sync(command, "invite")
        async with start_node(tmp_path / "b", "--client", "--join", invite["invite"]) as guest:
            assert (await guest.wait("ready"))["mesh_id"] == found["mesh_id"]
