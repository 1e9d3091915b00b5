"""What kind each layer of a model is, and which kinds a stage must not lack: a graph that finds no
layer of a kind aborts on the inputs of that kind.
"""

from __future__ import annotations

from typing import Literal

from p2p_mesh.core.families.family import Family
from p2p_mesh.core.gguf import Header

Kind = Literal["whole", "window", "recurrent", "feed_forward", "shared", "sparse"] | int
"""`whole`, `window`: attention, to all or to a window. `shared`: attention that uses what an
earlier layer has selected. `sparse`: attention with an index of its own. A number: it sees the
past packed, so many tokens to one (deepseek4).
"""

_INDEXED = 4
"""The ratio of the layers of deepseek4 whose memory has an index."""

_GLM_52_CONTEXT = 1_048_576
"""From this context on, a glm-dsa file that says nothing has the shared indexers of GLM 5.2."""


def windows(header: Header, family: Family, total: int) -> tuple[bool, ...] | None:
    """Which layers see a window only; None: the model has none."""
    width = header.metadata.get(f"{header.architecture}.attention.sliding_window")
    if family.window is None or width == 0 or (width is None and not family.window_implied):
        return None
    told = header.metadata.get(f"{header.architecture}.attention.sliding_window_pattern")
    if isinstance(told, tuple) and len(told) >= total:
        return tuple(bool(one) for one in told[:total])
    period, whole_first = family.window
    if isinstance(told, int):
        period = int(told)
    if whole_first:
        return tuple(period == 0 or layer % period != 0 for layer in range(total))
    return tuple(period == 0 or layer % period < period - 1 for layer in range(total))


def recurrent(header: Header, family: Family, total: int) -> tuple[bool, ...] | None:
    """Which layers are recurrent, in a model that has both kinds; None: it has one kind."""
    told = header.metadata.get(f"{header.architecture}.attention.recurrent_layers")
    if isinstance(told, tuple) and len(told) >= total and len(set(told[:total])) > 1:
        return tuple(bool(one) for one in told[:total])
    if family.interval:
        interval = max(1, header.number("full_attention_interval", family.interval))
        return tuple((layer + 1) % interval != 0 for layer in range(total))
    heads = header.metadata.get(f"{header.architecture}.attention.head_count_kv")
    if header.architecture == "deci" or not isinstance(heads, tuple) or len(heads) < total:
        return None
    if 0 in heads[:total]:
        return tuple(one == 0 for one in heads[:total])
    return None


def indexers(header: Header, total: int) -> tuple[bool, ...] | None:
    """Which layers select the tokens that they attend to themselves, where the others use what an
    earlier one has selected; None: no layer depends on another in this way.
    """
    architecture = header.architecture
    if architecture not in ("glm-dsa", "glm5-next", "hy_v4"):
        return None
    if not header.number("attention.indexer.top_k"):
        return None
    told = header.metadata.get(f"{architecture}.attention.indexer.types")
    if isinstance(told, tuple) and len(told) >= total:
        found = tuple(bool(one) for one in told[:total])
    elif told is None and architecture == "glm-dsa" and _is_glm_52(header):
        found = tuple(layer < 2 or (layer - 2) % 4 == 0 for layer in range(total))
    else:
        return None
    return None if all(found) else found


def _is_glm_52(header: Header) -> bool:
    return header.number("context_length") >= _GLM_52_CONTEXT


def selects_all(header: Header) -> bool:
    """Whether indexers select every token there can be, so that none depends on another."""
    return header.number("attention.indexer.top_k") >= header.number("context_length", 1)


def kinds(header: Header, family: Family, total: int) -> tuple[Kind, ...]:
    windowed = windows(header, family, total) or (False,) * total
    looped = recurrent(header, family, total) or (False,) * total
    feed = _feed_forward(header, total)
    full = indexers(header, total) or (True,) * total

    def kind(layer: int) -> Kind:
        if feed[layer]:
            return "feed_forward"
        if looped[layer]:
            return "recurrent"
        if windowed[layer]:
            return "window"
        return _attention(header, layer) if full[layer] else "shared"

    return tuple(kind(layer) for layer in range(total))


def _feed_forward(header: Header, total: int) -> tuple[bool, ...]:
    if header.architecture not in ("nemotron_h", "nemotron_h_moe"):
        return (False,) * total
    return tuple(width > 0 for width in header.numbers("feed_forward_length", total))


def _attention(header: Header, layer: int) -> Kind:
    if header.architecture == "deepseek4":
        ratios = header.metadata.get("deepseek4.attention.compress_ratios")
        return ratios[layer] if isinstance(ratios, tuple) and layer < len(ratios) else 0
    if header.architecture == "minimax-m3":
        return "sparse" if layer >= header.number("leading_dense_block_count") else "whole"
    return "whole"


def wanted(header: Header, family: Family, found: tuple[Kind, ...]) -> frozenset[Kind]:
    """The kinds that no stage of a model with these layers may lack."""
    present = frozenset(found)
    if header.architecture == "dots3note":
        return present
    if header.architecture == "deepseek4":
        return present & {_INDEXED}
    if "recurrent" in present:
        return present & {"recurrent", "whole"}
    if family.window_droppable:
        return frozenset()
    return present & {"window", "sparse"}
