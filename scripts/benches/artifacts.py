"""How fast a package goes from one node to another: fetched in checked pieces and written to the
disk, against one raw libp2p stream that carries as many bytes and keeps none.

Two processes on loopback, each with the network and the artifacts of a node (carrier.py). The
package is that of a GGUF file of random bytes. Its parts are removed before every fetch.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np
import trio
from figures import Figure
from pairs import Pair, Turns, ratio

PROGRAM = Path(__file__).with_name("carrier.py")
LAYERS = 16
ROWS, COLUMNS = 4096, 4096
"""Of the float32 matrix that a layer is: 64 MiB."""
WAIT = 120.0
"""Seconds for one answer of a process."""

RATIO_WANTED = 0.6


@dataclass(frozen=True)
class Plan:
    pairs: int
    layers: int = LAYERS
    tries: int = 3


FULL = Plan(pairs=7)
QUICK = Plan(pairs=3, layers=4, tries=1)


class Carrier:
    """A process that is told what to do in lines of JSON, and answers in such lines."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._held = b""

    async def hear(self) -> Any:
        assert self._process.stdout is not None
        with trio.fail_after(WAIT):
            while b"\n" not in self._held:
                data = await self._process.stdout.receive_some()
                assert data, "the process ended"
                self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return json.loads(line)

    async def ask(self, what: str) -> float:
        """Megabytes a second."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(what.encode() + b"\n")
        return float(await self.hear())


async def measure(plan: Plan = FULL) -> list[Figure]:
    turns = Turns(plan.tries)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        turns.say(f"writing {plan.layers * ROWS * COLUMNS * 4 / 1e9:.2f} GB of random bytes")
        await trio.to_thread.run_sync(write, folder / "random.gguf", plan.layers)
        async with _started("serve", folder / "serving", folder / "random.gguf") as serving:
            about = json.dumps(await serving.hear())
            async with _started("take", folder / "taking", about) as taking:
                await taking.hear()
                turns.say("once without counting: the disk's cache takes its memory now")
                await taking.ask("fetch")
                await taking.ask("raw")
                sides = [partial(nullcontext, what) for what in ("fetch", "raw")]
                found = await turns.pairs("1 package", sides, plan.pairs, partial(_run, taking))
    return list(_figures(found))


async def _run(taking: Carrier, what: str, _: Random) -> float:
    return await taking.ask(what)


@asynccontextmanager
async def _started(*arguments: object) -> AsyncIterator[Carrier]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield Carrier(process)
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()


def write(path: Path, layers: int, rows: int = ROWS, columns: int = COLUMNS) -> None:
    """A llama whose layers are one matrix each. Nothing computes with it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(columns)
    writer.add_head_count(32)
    writer.add_feed_forward_length(rows)
    small = np.zeros((8, columns), np.float32)
    names = [f"blk.{layer}.ffn_down.weight" for layer in range(layers)]
    for name in ("token_embd.weight", "output.weight"):
        writer.add_tensor_info(name, small.shape, small.dtype, small.nbytes)
    for name in names:
        writer.add_tensor_info(name, (rows, columns), np.dtype(np.float32), rows * columns * 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _ in range(2):
        writer.write_tensor_data(small)
    for _ in names:
        data = np.frombuffer(os.urandom(rows * columns * 4), np.float32)
        writer.write_tensor_data(data.reshape(rows, columns))
    writer.close()


def _figures(found: Sequence[Pair[float]]) -> Iterator[Figure]:
    value = ratio(found, lambda rate: rate)
    yield Figure("artifact_ratio", value, "", ">=", RATIO_WANTED)
    for name, side in zip(("artifact", "raw"), zip(*found, strict=True), strict=True):
        yield Figure(f"{name}_rate", statistics.median(side), "MB/s")
