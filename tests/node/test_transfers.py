"""What is being fetched is told of, and shown."""

from random import Random
from typing import Any

import pytest
import trio.testing

from p2p_mesh.core.names import PeerId
from p2p_mesh.errors import Unavailable
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.node.fetching import Fetching
from p2p_mesh.node.transfers import REPORT, Transfers
from tests.node.test_fetching import MANIFEST, Package

Clock = trio.testing.MockClock
A = PeerId("a")


class Named(Package):
    manifest: Any = type("Manifest", (), {"model_id": "tiny"})()


class Site:
    def __init__(self) -> None:
        self.entries: list[Entry] = []
        journal = Journal(self.entries.append)
        self.transfers = Transfers(journal)
        package: Any = Named(100, 200)
        self.fetching = Fetching(
            package, package.files, total=250, seek=lambda: (), is_announced=lambda _: True,
            open_line=lambda _: None, rng=Random(1), journal=journal,  # type: ignore[arg-type, return-value]
        )  # fmt: skip

    def events(self) -> list[str]:
        return [one.event for one in self.entries]


async def test_fetch_is_told_of_from_begin_to_end(autojump_clock: Clock) -> None:
    site, shares = Site(), list[float]()

    async def work() -> bool:
        await trio.sleep(REPORT + 1)
        site.fetching.done = site.fetching.came = 100
        site.fetching.senders = {A: 100}
        (status,) = site.transfers.status()
        assert status.pop("rate") > 0
        assert status == {"model": "tiny", "manifest": MANIFEST, "done_bytes": 100,
                          "total_bytes": 250, "from": [A]}  # fmt: skip
        await trio.sleep(1)
        return True

    await site.transfers.follow(site.fetching, work, shares.append)
    assert site.events() == ["artifacts_fetching", "artifacts_progress", "artifacts_fetched"]
    assert (shares[0], shares[-1]) == (0.0, 0.4)
    assert site.transfers.status() == []


async def test_fetch_that_fails_says_why(autojump_clock: Clock) -> None:
    site = Site()

    async def work() -> bool:
        raise Unavailable("nobody has it")

    with pytest.raises(Unavailable):
        await site.transfers.follow(site.fetching, work, lambda _: None)
    assert site.events() == ["artifacts_fetching", "artifacts_failed"]
    assert site.transfers.status() == []


async def test_fetch_after_which_something_is_missing_is_not_told_of_as_done() -> None:
    site = Site()

    async def work() -> bool:
        return False

    await site.transfers.follow(site.fetching, work, lambda _: None)
    assert site.events() == ["artifacts_fetching"]
