"""How fast a mixture of experts can be expected to write, from what one token reads.

A token reads the trunk and the experts that it is routed to, each weight once. What is in memory
comes at the bandwidth of memory, the rest at that of the disk, one after the other: that they
overlap is not counted on. Routing is taken to be even, the worst case for a cache: real routers
have favourites, and find them in memory more often.
"""

from __future__ import annotations

from p2p_mesh.core.records import ModelFile, Resources


def token_bytes(model: ModelFile) -> int:
    """Bytes of weights that one token reads."""
    return trunk_bytes(model) + routed_bytes(model)


def trunk_bytes(model: ModelFile) -> int:
    """All weights but those of routed experts."""
    return max(0, model.size_bytes - model.expert_bytes)


def routed_bytes(model: ModelFile) -> int:
    """Bytes of the experts that one token goes through, in all layers."""
    if not model.experts:
        return model.expert_bytes
    return model.expert_bytes * min(model.experts_used, model.experts) // model.experts


def hit_rate(model: ModelFile, cache_bytes: int) -> float:
    """The share of the chosen experts that are in a cache of so many bytes."""
    return min(1.0, max(0, cache_bytes) / model.expert_bytes) if model.expert_bytes else 1.0


def missed_bytes(model: ModelFile, cache_bytes: int) -> float:
    """Bytes that one token reads from the disk."""
    return routed_bytes(model) * (1.0 - hit_rate(model, cache_bytes))


def flash_speed(model: ModelFile, resources: Resources, cache_bytes: int) -> float | None:
    """Tokens a second of one answer with so many bytes of experts in memory; None where that
    hangs on what was not measured.
    """
    missed = missed_bytes(model, cache_bytes)
    if not resources.bandwidth or (missed and not resources.disk):
        return None
    seconds = token_bytes(model) / resources.bandwidth
    if missed:
        seconds += missed / resources.disk
    return 1.0 / seconds if seconds else None
