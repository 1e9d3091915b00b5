"""The status as metrics, in the text format that Prometheus reads (docs/api.md names them)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]
Sample = tuple[str, Labels, float]


def metrics(status: Mapping[str, Any]) -> str:
    """The text; `status` is what `GET /api/status` shows."""
    families: dict[str, list[tuple[Labels, float]]] = {}
    for name, labels, value in _samples(status):
        families.setdefault(f"meshnode_{name}", []).append((labels, value))
    return "".join(line for name, samples in families.items() for line in _family(name, samples))


def _samples(status: Mapping[str, Any]) -> Iterator[Sample]:
    yield "info", {"name": status["name"], "version": status["version"]}, 1
    yield "uptime_seconds", {}, status["uptime_s"]
    for name in ("memory_total", "memory_free"):
        yield f"{name}_bytes", {}, status["resources"][name]
    for state, count in sorted(Counter(one["state"] for one in status["peers"]).items()):
        yield "peers", {"state": state}, count
    for model in status["models"]:
        yield from _of_model(model)


def _of_model(model: Mapping[str, Any]) -> Iterator[Sample]:
    labels = {"model": model["id"]}
    yield "model_ready", labels, model["state"] == "ready"
    yield "model_active_requests", labels, model["active"]
    yield "model_queued_requests", labels, model["queued"]
    for name, value in model["measures"].items():
        yield f"engine_{name}", labels, value


def _family(name: str, samples: Iterable[tuple[Labels, float]]) -> Iterator[str]:
    yield f"# TYPE {name} gauge\n"
    for labels, value in samples:
        words = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        yield f"{name}{{{words}}} {value:.15g}\n" if words else f"{name} {value:.15g}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
