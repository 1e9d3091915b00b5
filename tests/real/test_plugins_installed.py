"""Plugins in distributions of their own, installed by pip: a good one serves, broken ones do not
hurt it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from p2p_mesh.testing.cluster import NodeProcess, start_node
from tests.real.shared import facts, running

DISTS = Path(__file__).parents[1] / "dists"
BROKEN = {
    "missing": "No module named 'meshnode_broken_nowhere'",
    "exits": "SystemExit: this plugin wants to end the node",
    "misspelt": "no hook 'meshnode_bakcends'",
    "raises": "RuntimeError: this plugin raises",
    "hangs": "TooSlowError",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which both distributions are installed."""
    folder = tmp_path_factory.mktemp("site")
    sources = [str(DISTS / "echo"), str(DISTS / "broken")]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--target", str(folder), *sources],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def alice(
    tmp_path_factory: pytest.TempPathFactory,
    bytecode: Path,
    tiny: Path,
    installed: dict[str, str],
) -> Iterator[NodeProcess]:
    """A node that has them."""
    folder = tmp_path_factory.mktemp("alice")
    with running(folder, bytecode, "--model", str(tiny), environment=installed) as node:
        yield node


async def get(node: NodeProcess, path: str, method: str = "GET") -> Any:
    token = json.loads((node.data_dir / "node.json").read_text())["token"]
    async with httpx.AsyncClient() as client:
        response = await client.request(
            method, node.url("console") + path, json={} if method == "POST" else None,
            headers={"Authorization": f"Bearer {token}"},
        )  # fmt: skip
        assert response.status_code == 200, response.text
        return response.json()


async def test_strangers_backend_answers(alice: NodeProcess) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(
            f"{alice.url()}/v1/chat/completions",
            json={"model": "tiny", "messages": [{"role": "user", "content": "say it again"}]},
        )
    assert answer.json()["choices"][0]["message"]["content"] == "say it again"
    assert alice.engines() == []  # the echo was chosen, and no engine process started
    with trio.fail_after(15):  # the hook that hangs is cut off after 5 s
        while (await skipped(alice)).keys() != BROKEN.keys():
            await trio.sleep(0.2)
    for name, reason in (await skipped(alice)).items():
        assert BROKEN[name] in reason
    with trio.fail_after(15):
        while "ready" not in (heard := (await get(alice, "/plugins/echo/heard"))["events"]):
            await trio.sleep(0.2)
    assert {"api_ready", "model_ready"} <= set(heard)


async def skipped(node: NodeProcess) -> dict[str, str]:
    plugins = (await get(node, "/api/status"))["plugins"]
    assert ("echo", "1.2.3", "active") in [
        (one["name"], one["version"], one["state"]) for one in plugins
    ]
    return {one["name"]: one["reason"] for one in plugins if one["state"] == "skipped"}


async def test_topics_carry_between_nodes(
    tmp_path: Path, alice: NodeProcess, installed: dict[str, str]
) -> None:
    arguments = ("--client", "--join", facts(alice)["invite"])
    async with start_node(tmp_path / "b", *arguments, environment=installed) as bob:
        await bob.wait("ready", 60)
        posts: list[str] = []
        for _ in range(100):  # gossip needs a heartbeat or two to know who listens
            await get(bob, "/plugins/echo/post", "POST")
            posts = (await get(alice, "/plugins/echo/heard"))["posts"]
            if posts:
                break
        assert posts[0] == "hello"


def test_strangers_command_is_there(installed: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "p2p_mesh", "echo", "hello", "there"],
        capture_output=True, text=True, timeout=60, env={**os.environ, **installed}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "hello there\n")


def test_broken_plugins_are_listed_without_a_node(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "p2p_mesh", "plugins", "--json", "--data-dir", str(tmp_path)],
        capture_output=True, text=True, timeout=60, env={**os.environ, **installed}, check=True,
    )  # fmt: skip
    reasons = {one["name"]: one["reason"] for one in json.loads(done.stdout)}
    for name in ("missing", "exits", "misspelt", "raises"):
        assert BROKEN[name] in reasons[name]
