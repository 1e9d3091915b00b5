"""A flash engine, seen from its node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest
from meshnode_flash_moe.engine import LASTING, FlashEngine, Limit, command, run_engine
from meshnode_flash_moe.memory import Room
from msgspec.structs import replace

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import TextPrompt, TokenizeQuery
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.backend import Fit, Load
from tests.plugins.flash_moe.mixtures import GB, MODEL

STAND_IN = "tests.plugins.flash_moe.stand_in"
ROOM = Room(context=64, slots=2, beside=3 * GB, experts=4_200_000_000)


@asynccontextmanager
async def running(said: list[tuple[str, str]]) -> AsyncIterator[FlashEngine]:
    def say(event: str, text: str) -> None:
        said.append((event, text))

    async with run_engine(Load(replace(MODEL, size_bytes=0)), ROOM, say, worker=STAND_IN) as engine:
        yield engine


async def compute(engine: FlashEngine, how: str) -> None:
    """The stand-in reports some times of a disk that is fast or slow."""
    await engine.query(TokenizeQuery(model=ModelId("moe"), prompt=TextPrompt(text=how)))


async def test_an_engine_opens_and_leaves_no_process() -> None:
    async with running([]) as engine:
        about = engine.describe()
        assert psutil.pid_exists(about.pid or 0)
    assert (about.context, about.slots, about.measures) == (64, 2, {})
    assert about.notes == ("n", "experts from the disk: room for 4.2 of 16.0 GB of them in memory")
    assert not psutil.pid_exists(about.pid or 0)


async def test_what_it_measures_is_described() -> None:
    async with running([]) as engine:
        await compute(engine, "fast")
        about = engine.describe()
    assert about.measures == {
        "expert_hit_rate": 0.63,
        "expert_cache_bytes": 4_200_000_000,
        "expert_bytes": 16_300_000_000,
        "disk_bytes_per_token": 41e6,
        "disk_bandwidth_bytes": 1.2e9,
        "disk_wait_share": 0.1,
    }
    assert about.notes[-1] == "experts from the disk: 4.2 of 16.3 GB of them in memory"


async def test_the_disk_is_named_when_it_limits_and_when_it_does_not_any_longer() -> None:
    said: list[tuple[str, str]] = []
    async with running(said) as engine:
        for how in ("fast", "slow", "slow", "fast"):
            await compute(engine, how)
    assert said == [
        (
            "disk_limits",
            "moe waits for the disk 90% of the time: it finds 63% of the experts in memory, and "
            "reads 41 MB a token at 1.2 GB/s; more --max-memory would help",
        ),
        ("disk_keeps_up", "moe waits for the disk no longer"),
    ]


async def test_a_bad_file_is_refused_in_words() -> None:
    load = Load(replace(MODEL, path="bad"))
    with pytest.raises(ModelError, match="the file is none"):
        async with run_engine(load, ROOM, lambda event, text: None, worker=STAND_IN):
            pass


def test_a_short_wait_changes_nothing() -> None:
    limit = Limit()
    waits = [*[0.9] * (LASTING - 1), 0.1] * 3
    assert not any(limit.changes(wait) for wait in waits)
    assert [limit.changes(0.9) for _ in range(LASTING)][-1]
    assert limit.is_disk
    assert not any(limit.changes(wait) for wait in [0.1] * (LASTING - 1))


@pytest.mark.parametrize(
    ("load", "guesses"),
    [
        (Load(MODEL), False),
        (Load(MODEL, speculation=True), True),
        (Load(MODEL, speculation=False, draft=MODEL), False),
        (Load(MODEL, draft=MODEL), True),
    ],
)
def test_tokens_are_guessed_where_somebody_asks_for_it(load: Load, guesses: bool) -> None:
    found = command(load, Fit(64, 2, 9), ROOM)
    assert found.open.speculation is guesses
    assert (found.memory, found.experts) == (ROOM.total, ROOM.experts)
    assert (found.open.memory_limit, found.open.gpu_layers) == (None, 0)
