"""What is being fetched now: said in the log as it begins, goes on and ends, and shown."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from p2p_mesh.errors import MeshError
from p2p_mesh.groups import bare
from p2p_mesh.journal import Journal
from p2p_mesh.node.fetching import Fetching

LOOK = 0.5
"""Seconds between two looks at how far a fetch is,"""
REPORT = 10.0
"""and between two log lines of it."""

Progress = Callable[[float], None]


class Transfers:
    """The fetches of one node, one of each package at a time."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._fetching: dict[str, Fetching] = {}

    async def follow(
        self, fetching: Fetching, work: Callable[[], Awaitable[bool]], progress: Progress
    ) -> None:
        """Around the work that fetches, and tells whether all is here then. Raises as it does."""
        package, size = fetching.package, fetching.total
        name, manifest, count = package.manifest.model_id, package.ref.manifest, len(fetching.files)
        parts = "1 part" if count == 1 else f"{count} parts"
        self._fetching[manifest] = fetching
        self._journal.info(
            "artifacts_fetching", f"fetching {parts} of {name}, {size / 1e9:.2f} GB",
            model=name, manifest=manifest, parts=count, size_bytes=size,
        )  # fmt: skip
        try:
            is_here = await self._with_reports(fetching, work, progress)
        except MeshError as error:
            self._journal.warning(
                "artifacts_failed", f"the parts of {name} are not all here: {error}", model=name,
                manifest=manifest, reason=str(error),
            )  # fmt: skip
            raise
        finally:
            del self._fetching[manifest]
        if not is_here:
            return
        seconds = trio.current_time() - fetching.started
        self._journal.info(
            "artifacts_fetched", f"fetched {parts} of {name} in {seconds:.1f} s",
            model=name, manifest=manifest, parts=count, size_bytes=size,
            seconds=round(seconds, 3), from_peers=len(fetching.senders),
        )  # fmt: skip

    async def _with_reports(
        self, fetching: Fetching, work: Callable[[], Awaitable[bool]], progress: Progress
    ) -> bool:
        with bare():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._report, fetching, progress)
                is_here = await work()
                nursery.cancel_scope.cancel()
        return is_here

    async def _report(self, fetching: Fetching, progress: Progress) -> None:
        name, said = fetching.package.manifest.model_id, trio.current_time()
        while True:
            progress(fetching.share)
            await trio.sleep(LOOK)
            if trio.current_time() - said < REPORT:
                continue
            said = trio.current_time()
            self._journal.info(
                "artifacts_progress",
                f"{name}: {fetching.share:.0%} of {fetching.total / 1e9:.2f} GB, "
                f"{fetching.rate / 1e6:.0f} MB/s",
                model=name, progress=round(fetching.share, 3), rate=round(fetching.rate),
            )  # fmt: skip

    def status(self) -> list[dict[str, Any]]:
        """As plain values."""
        return [
            {
                "model": one.package.manifest.model_id,
                "manifest": manifest,
                "done_bytes": one.done,
                "total_bytes": one.total,
                "rate": round(one.rate),
                "from": sorted(one.senders),
            }
            for manifest, one in self._fetching.items()
        ]
