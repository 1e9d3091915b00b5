"""Who comes in, who is put out and who finds the way back, with nodes that are processes."""

import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio

from p2p_mesh.testing.cluster import NodeProcess, start_node
from tests.real.test_commands import tell


async def joined(node: NodeProcess, peer: str, seconds: float = 15.0, after: int = 0) -> None:
    await told(node, "peer_joined", peer, seconds, after)


async def told(
    node: NodeProcess, event: str, peer: str, seconds: float, after: int = 0
) -> dict[str, Any]:
    """The first log line of that event about a peer."""
    with trio.fail_after(seconds):
        while True:
            line = await node.wait(event, seconds, after=after)
            if line["peer"] == peer:
                return line
            after = node.log.index(line, after) + 1


IDLE = ("--p2p-host", "127.0.0.1", "--standby", "meshnode-demo")
"""It serves nothing until it is asked for, and nobody asks."""


async def found(stack: AsyncExitStack, folder: Path) -> tuple[NodeProcess, str, str]:
    """A node that founded its mesh, its peer id, and the token that it prints."""
    node = await stack.enter_async_context(start_node(folder, *IDLE))
    ready = await node.wait("ready")
    return node, ready["peer_id"], ready["invite"]


async def join(stack: AsyncExitStack, folder: Path, token: str) -> NodeProcess:
    """A node that is starting."""
    return await stack.enter_async_context(start_node(folder, *IDLE, "--join", token))


async def id_of(node: NodeProcess) -> str:
    """Its peer id, once it is ready."""
    return str((await node.wait("ready"))["peer_id"])


async def test_invite_of_one_use_lets_one_in(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        holder, _, _ = await found(stack, tmp_path / "a")
        token = (await tell(tmp_path / "a", "invite", "--uses", "1"))["invite"]
        guest = await id_of(await join(stack, tmp_path / "b", token))
        await joined(holder, guest)
        async with start_node(tmp_path / "c", *IDLE, "--join", token) as second:
            with trio.fail_after(15):
                assert await second.process.wait() != 0
                while "used 1 times" not in second.text + str(second.log):
                    await trio.sleep(0.05)
        made = await tell(tmp_path / "a", "invites")
        assert [one["peers"] for one in made if one["uses"]] == [[guest]]


async def test_revoked_peer_is_dropped_by_all_within_5_seconds(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        holder, _, token = await found(stack, tmp_path / "a")
        member = await join(stack, tmp_path / "b", token)
        out = await join(stack, tmp_path / "c", token)
        peer = await id_of(out)
        for one in (holder, member):
            await joined(one, peer)
        began = trio.current_time()
        done = await tell(tmp_path / "a", "revoke", peer)
        for one in (holder, member):
            await told(one, "peer_left", peer, 5.0)
        assert trio.current_time() - began < 5
        assert done["peers"] == [peer]
        assert done["invite"] is not None
        await out.wait("revoked", 5.0)
        assert (await tell(tmp_path / "c", "status"))["is_revoked"]
        assert not [one for one in out.log if "malformed" in one["message"]]


async def test_member_finds_back_without_token_and_seed(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        seed, _, token = await found(stack, tmp_path / "a")
        third = await join(stack, tmp_path / "b", token)
        async with start_node(tmp_path / "c", *IDLE, "--join", token) as member:
            peer, third_id = await id_of(member), await id_of(third)
            await joined(third, peer)
            await joined(member, third_id)
            await member.stop(signal.SIGTERM)
        await seed.stop(signal.SIGTERM)
        before = len(third.log)
        async with start_node(tmp_path / "c", *IDLE) as again:
            await joined(again, third_id)
            await joined(third, peer, after=before)
