"""What takes a while on a node: looked at again and again, and shown, until it is over."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from p2p_mesh.cli import output
from p2p_mesh.errors import LocalError, ModelError

EVERY = 0.5
"""Seconds between two looks."""

_NUMBERS = re.compile(r"\d+")

Model = Mapping[str, Any]
Look = Callable[[], Iterable[Model]]
"""The models of a node as they are now."""


def until_loaded(model: str, look: Look) -> Model:
    """The model once it is ready. Raises ModelError where it cannot be served."""
    said = ""
    with output.progress() as show:
        while (found := _of(model, look()))["state"] == "loading":
            # Numbers in a reason change all the time: it is told once.
            if (reason := found.get("error")) and (words := _NUMBERS.sub("", reason)) != said:
                said = words
                output.note(f"{model} {_verb(found)}: {reason}; it is tried again and again")
            far = "" if found.get("waiting") else f": {found['progress']:.0%}"
            show(f"{model} {_verb(found)}{far}")
            time.sleep(EVERY)
    if found["state"] != "ready":
        raise ModelError(f"{model} is not served: {found['error'] or found['state']}")
    return found


def until_unloaded(model: str, look: Look) -> int:
    """How many answers were waited for at first; returns when the last has ended."""
    waited: int | None = None
    with output.progress() as show:
        while (found := _find(model, look())) is not None:
            left = found["active"] + found["queued"]
            if waited is None and left:
                output.note(f"{model} takes no more requests; waiting for {_answers(left)}")
            waited = left if waited is None else waited
            show(f"waiting for {_answers(left)}")
            time.sleep(EVERY)
    return waited or 0


def _verb(model: Model) -> str:
    return "waits for nodes" if model.get("waiting") else "is loading"


def _answers(count: int) -> str:
    return "1 answer" if count == 1 else f"{count} answers"


def _find(model: str, models: Iterable[Model]) -> Model | None:
    return next((one for one in models if one["id"] == model), None)


def _of(model: str, models: Iterable[Model]) -> Model:
    found = _find(model, models)
    if found is None:
        raise LocalError(f"{model} is gone again: it was unloaded, or could not be loaded")
    return found
