"""Two machines: nodes in network namespaces of their own, with a cable between them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from p2p_mesh.testing.cluster import start_node

ASK = """
import json, sys, urllib.request
url, body = sys.argv[1:]
request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=20).read().decode())
"""
ADDRESSES = {"a": "10.99.7.1", "b": "10.99.7.2"}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[dict[str, tuple[str, ...]]]:
    """For each machine, what to put before a command so that it runs there."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names = {key: f"meshnode-{os.getpid()}-{key}" for key in ADDRESSES}
    made = []
    try:
        for name in names.values():
            ip("netns", "add", name)
            made.append(name)
        cable = f"mn{os.getpid() % 100_000}"
        ip("link", "add", f"{cable}a", "netns", names["a"], "type", "veth",
           "peer", "name", f"{cable}b", "netns", names["b"])  # fmt: skip
        for key, address in ADDRESSES.items():
            at = ("-n", names[key])
            ip(*at, "addr", "add", f"{address}/24", "dev", f"{cable}{key}")
            ip(*at, "link", "set", f"{cable}{key}", "up")
            ip(*at, "link", "set", "lo", "up")
        yield {key: ("ip", "netns", "exec", name) for key, name in names.items()}
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False)


def ask(prefix: tuple[str, ...], url: str, model: str) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "seed": 1,
            "max_tokens": 24}  # fmt: skip
    command = [*prefix, sys.executable, "-c", ASK, f"{url}/v1/chat/completions", json.dumps(body)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return json.loads(done.stdout)["choices"][0]["message"]["content"]


async def test_model_of_another_machine_answers_here(
    tmp_path: Path, tiny: Path, machines: dict[str, tuple[str, ...]]
) -> None:
    async with start_node(tmp_path / "a", "--model", str(tiny), prefix=machines["a"]) as alice:
        ready = await alice.wait("ready", 60)
        assert any(f"/ip4/{ADDRESSES['a']}/" in address for address in ready["p2p_addrs"])
        async with start_node(
            tmp_path / "b", "--client", "--join", ready["invite"], prefix=machines["b"]
        ) as bob:
            await bob.wait("ready", 60)
            texts = [
                await trio.to_thread.run_sync(ask, machines[key], node.url(), "tiny")
                for key, node in (("a", alice), ("b", bob))
            ]
            assert texts[0] == texts[1] != ""
