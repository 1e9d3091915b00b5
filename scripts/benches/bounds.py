"""What a pipeline can give at best, by how long its model takes alone. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence


def partitions(total: int, most: int | None = None) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as a sum of numbers that do not grow, none above `most`."""
    if total == 0:
        yield ()
        return
    for first in range(min(total, most or total), 0, -1):
        for rest in partitions(total - first, first):
            yield first, *rest


def round_seconds(parts: Sequence[int], steps: Mapping[int, float], stages: int) -> float:
    """How long it takes at least until each stream has one more token. `parts` are the rows of the
    micro-batches, `steps` what the whole model takes for so many rows, of which each stage does an
    equal part. A stage does them one after the other; a micro-batch passes all stages before its
    streams go on.
    """
    times = [steps[part] for part in parts]
    return max(sum(times) / stages, *times)


def best_rate(streams: int, steps: Mapping[int, float], stages: int) -> float:
    """Tokens a second of all streams, with the best of all ways to cut them into micro-batches."""
    return streams / min(round_seconds(parts, steps, stages) for parts in partitions(streams))
