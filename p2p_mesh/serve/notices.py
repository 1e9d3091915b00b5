"""What the log says of a model that is served here: what is news, and once. That it waits for other
nodes is said when it has lasted, and again for another reason; how far it is loaded, now and then.
"""

from __future__ import annotations

import math
import re

import trio

from p2p_mesh.core.names import ModelId
from p2p_mesh.journal import Journal
from p2p_mesh.serve.backend import Description

REPORT_EVERY = 2.0
"""Seconds between two lines about a model that loads."""

SAID_AFTER = 3.0
"""Seconds that a model waits for other nodes until that is logged: they need time to come."""

_NUMBERS = re.compile(r"\d+")


class Notices:
    """Of one model."""

    def __init__(self, model: ModelId, journal: Journal) -> None:
        self._id = model
        self._journal = journal
        self._reported = 0.0
        self._waiting_since = math.inf
        self._said_waiting = ""
        """The reason that was said, without its numbers."""

    def opens(self) -> None:
        """Its engine is opened now: said when that takes long."""
        self._reported = trio.current_time()

    def loading(self, progress: float) -> None:
        now = trio.current_time()
        if now - self._reported >= REPORT_EVERY and progress < 1.0:
            self._reported = now
            self._journal.info(
                "model_loading", f"{self._id} is loading: {progress:.0%}",
                model=self._id, progress=round(progress, 3),
            )  # fmt: skip

    def ready(self, about: Description, seconds: float) -> None:
        """After so many seconds; if it waited, that is over."""
        self._waiting_since, self._said_waiting = math.inf, ""
        for note in about.notes:
            self._journal.warning(
                "model_note", f"{self._id}: {note}", model=self._id, note=note
            )  # fmt: skip
        self._journal.info(
            "model_ready",
            f"{self._id} is ready: context {about.context or 'unknown'}, "
            f"{about.slots} at a time, on {about.device}, loaded in {seconds:.1f} s",
            model=self._id, context=about.context, slots=about.slots,
            device=about.device, seconds=round(seconds, 3),
        )  # fmt: skip

    def renewed(self, reason: str) -> None:
        self._journal.info(
            "engine_renewed", f"the engine of {self._id} is opened anew: {reason}",
            model=self._id, reason=reason,
        )  # fmt: skip

    def died(self, reason: str, *, was_ready: bool) -> None:
        verb = "ended" if was_ready else "could not be opened"
        self._journal.warning(
            "engine_died", f"the engine of {self._id} {verb}: {reason}; starting it again",
            model=self._id, reason=reason,
        )  # fmt: skip

    def waits(self, reason: str) -> None:
        """Once that has lasted, and again for another reason, whose numbers change all the time."""
        kind, now = _NUMBERS.sub("", reason), trio.current_time()
        self._waiting_since = min(now, self._waiting_since)
        if now - self._waiting_since >= SAID_AFTER and kind != self._said_waiting:
            self._said_waiting = kind
            self._journal.warning(
                "model_waits", f"{self._id} waits for other nodes: {reason}",
                model=self._id, reason=reason,
            )  # fmt: skip

    def failed(self, reason: str) -> None:
        self._journal.error(
            "model_failed", f"{self._id} cannot be served: {reason}", model=self._id, reason=reason
        )
