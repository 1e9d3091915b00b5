"""Two nodes, one with a model on its disk: it is served when the other's client asks for it."""

from pathlib import Path
from typing import Any

import httpx
import trio

from p2p_mesh.testing.cluster import NodeProcess, start_node

WANTED = "meshnode-demo"
ALONE = ("--p2p-host", "127.0.0.1")


async def ask(node: NodeProcess) -> httpx.Response:
    async with httpx.AsyncClient(timeout=30) as client:
        body = {"model": WANTED, "prompt": "hello", "max_tokens": 3}
        return await client.post(f"{node.url()}/v1/completions", json=body)


async def status(node: NodeProcess) -> dict[str, Any]:
    async with httpx.AsyncClient(timeout=30) as client:
        found: dict[str, Any] = (await client.get(f"{node.url('console')}/api/status")).json()
        return found


async def test_standby_serves_what_a_client_asked_for(tmp_path: Path, tiny: Path) -> None:
    async with start_node(tmp_path / "a", *ALONE, "--model", str(tiny)) as alice:
        token = (await alice.wait("ready"))["invite"]
        joining = (*ALONE, "--standby", WANTED, "--join", token)
        async with start_node(tmp_path / "b", *joining) as bob:
            await bob.wait("ready")
            assert (await status(bob))["standby"][0]["id"] == WANTED
            refused = await ask(alice)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "loading")
            assert int(refused.headers["retry-after"]) >= 1
            began = trio.current_time()
            await bob.wait("model_wanted", 10.0)
            await bob.wait("model_ready", 20.0)
            assert trio.current_time() - began < 20
            await alice.wait("model_offered", 5.0, after=0)
            with trio.fail_after(10):
                while (await ask(alice)).status_code != 200:
                    await trio.sleep(0.1)
            found = await status(bob)
            assert found["standby"] == []
            assert found["models"][0]["planned"]
            assert found["demand"][WANTED] > 0.5


async def test_wish_is_served_and_needs_a_mesh(tmp_path: Path, tiny: Path) -> None:
    async with start_node(tmp_path / "a", "--model", WANTED, "--model", "nowhere") as alone:
        assert await alone.process.wait() == 2
    async with start_node(tmp_path / "a", *ALONE, "--standby", str(tiny.parent)) as alice:
        token = (await alice.wait("ready"))["invite"]
        wishing = (*ALONE, "--model", str(tmp_path / "gone" / tiny.name), "--join", token)
        async with start_node(tmp_path / "b", *wishing) as bob:
            assert (await bob.wait("model_wished"))["model"] == tiny.stem
            await alice.wait("model_wanted", 20.0)
            await alice.wait("model_ready", 20.0)
