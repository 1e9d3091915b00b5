"""In which of four ways a model is served: whole, in stages, by expert shards, or flash.

1. What somebody asked for is done, or not at all: nothing else is served in its place.
2. A model that this node can serve whole is served whole.
3. Else the fastest counts of the ways that can begin now and give the model's own answers: stages,
   with the nodes that are there, and flash, on this node. A shard lacks experts, so its answers are
   other ones: it is chosen where it keeps enough of the routing, and is CLEARLY faster than either,
   or nothing else can begin. A speed that nobody knows counts as ASSUMED, and never as fast enough
   to change answers for.
4. Where nothing can begin now, stages wait for nodes. Where no nodes could help, it is refused,
   with the reasons of all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from p2p_mesh.core.records import Choice
from p2p_mesh.core.sites import BACKEND

BACKENDS: dict[Choice, str] = {
    "stages": BACKEND, "shards": "expert_shards", "flash": "flash_moe",
}  # fmt: skip
"""Who serves a model in each way, of the backends that come with meshnode; all others: whole."""

CLEARLY = 2.0
"""Times the speed of the fastest way that is exact: so much faster a shard has to be."""

ASSUMED = 1.0
"""Tokens a second, of a way whose speed nobody knows: slow, as what does not fit mostly is."""

State = Literal["ready", "waits", "refused"]

NAMES: dict[Choice, str] = {
    "whole": "whole", "stages": "in stages", "shards": "by expert shards", "flash": "flash",
}  # fmt: skip
"""Each way in the words of a sentence."""

_EXACT: tuple[Choice, ...] = ("stages", "flash")
"""Of two that are as fast, the first: stages read no disk."""


@dataclass(frozen=True, slots=True)
class Option:
    """One of the four ways, as this node sees it now."""

    choice: Choice
    state: State
    """It could begin now; it could once other nodes are there; or never."""
    reason: str = ""
    """Why it cannot begin."""
    tokens_per_second: float | None = None
    """Expected, of one answer; None: nobody knows."""
    mass: float | None = None
    """In `shards`: the share of the routing that goes to the experts here; None: not known."""

    @property
    def speed(self) -> float:
        return ASSUMED if self.tokens_per_second is None else self.tokens_per_second


@dataclass(frozen=True, slots=True)
class Decision:
    """How a model is served, and why."""

    choice: Choice | None
    """None: it is not."""
    why: str
    is_waiting: bool = False
    """It needs nodes that are not there."""


def decide(
    options: Iterable[Option], *, asked: Choice | None = None, min_mass: float = 0.0
) -> Decision:
    """The way that a model is served, of those there are: one of each at most."""
    ways = {one.choice: weighed(one, asked, min_mass) for one in options}
    if asked is not None:
        return _asked(ways.get(asked), asked)
    if (whole := ways.get("whole")) and whole.state == "ready":
        return Decision("whole", "this node can hold all of it")
    ready = [ways[one] for one in _EXACT if one in ways and ways[one].state == "ready"]
    exact = max(ready, key=lambda one: one.speed, default=None)
    shards = ways.get("shards")
    if shards is not None and shards.state == "ready" and _outruns(shards, exact):
        return Decision("shards", _why_shards(shards, exact))
    if exact is not None:
        return Decision(exact.choice, _why_exact(exact, ways.values()))
    return _later(ways.values())


def weighed(option: Option, asked: Choice | None, min_mass: float) -> Option:
    """A shard that keeps too little of the routing is none; nor is, where nobody asked for it, one
    of which that is not known.
    """
    if option.choice != "shards" or option.state != "ready":
        return option
    if option.mass is None and asked is None:
        return Option("shards", "refused", "how much of the routing it would keep is not known")
    if option.mass is None or option.mass >= min_mass:
        return option
    return Option(
        "shards", "refused",
        f"it would keep {option.mass:.2f} of the routing, and {min_mass:.2f} are wanted at least",
    )  # fmt: skip


def _asked(option: Option | None, asked: Choice) -> Decision:
    if option is None or option.state == "refused":
        reason = option.reason if option else "no backend of this node does that"
        return Decision(None, f"it is wanted {NAMES[asked]}, and cannot be: {reason}")
    waits = f"; it waits for nodes: {option.reason}" if option.state == "waits" else ""
    return Decision(asked, f"it is wanted so{waits}", is_waiting=option.state == "waits")


def _outruns(shards: Option, exact: Option | None) -> bool:
    """Whether shards are worth other answers."""
    if exact is None:
        return True
    if shards.tokens_per_second is None or exact.tokens_per_second is None:
        return False
    return shards.tokens_per_second >= CLEARLY * exact.tokens_per_second


def _later(ways: Iterable[Option]) -> Decision:
    """Where nothing can begin now."""
    if any(one.choice == "stages" and one.state == "waits" for one in ways):
        reasons = "; ".join(_against(one) for one in ways)
        return Decision("stages", f"nothing can begin now; {reasons}", is_waiting=True)
    return Decision(
        None, "; ".join(f"{NAMES[one.choice]}: {one.reason.rstrip('.')}" for one in ways)
    )


def _why_shards(shards: Option, exact: Option | None) -> str:
    said = f"{NAMES['shards']}: {_speed(shards)}, with {shards.mass or 0:.2f} of the routing"
    if exact is None:
        return f"{said}; nothing else can begin now"
    return f"{said}; over {CLEARLY:g} times as fast as {NAMES[exact.choice]}, {_speed(exact)}"


def _why_exact(best: Option, ways: Iterable[Option]) -> str:
    """What the best does, and what is against each of the others, in a sentence."""
    others = [_against(one, best) for one in ways if one is not best]
    return "; ".join([f"{NAMES[best.choice]}: {_speed(best)}", *others])


def _against(other: Option, best: Option | None = None) -> str:
    if other.state != "ready":
        return f"{NAMES[other.choice]}: {other.reason.partition('. ')[0].rstrip('.')}"
    said = f"{NAMES[other.choice]}: {_speed(other)}"
    if other.choice != "shards":
        return said
    are_known = best is not None and None not in (best.tokens_per_second, other.tokens_per_second)
    compared = (
        f"less than {CLEARLY:g} times as fast" if are_known else "whether it is faster is not known"
    )
    return f"{said}, {compared}, with other answers than the model's"


def _speed(option: Option) -> str:
    if option.tokens_per_second is None:
        return f"an unknown speed, {ASSUMED:g} token/s assumed"
    return f"{option.tokens_per_second:.1f} tokens/s expected"
