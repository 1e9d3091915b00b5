"""Items that somebody may take as they come, before whoever reads them has his turn.

A token passes several tasks on its way to the client. Each of them takes a turn of the loop, which
costs a node that has been idle since the last token more than all else that it does for it. So who
reads an iterator may leave something with it that takes an item at once, if it can; the reader
sleeps on, and has the items that were not taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Take = Callable[[T], bool]
"""Takes an item whole, or gives False and has done nothing. It neither waits nor raises."""


@runtime_checkable
class Offering(Protocol[T_co]):
    """An iterator that offers its items."""

    def offer(self, take: Callable[[T_co], bool]) -> None:
        """From now on, each item that comes while its reader waits for it is offered first. To
        offer is no duty: whoever passes items on may pass them to the reader only.
        """
        ...


def then(take: Take[T], tell: Callable[[T], None]) -> Take[T]:
    """Takes what `take` does, and tells of it."""

    def taken(item: T) -> bool:
        is_taken = take(item)
        if is_taken:
            tell(item)
        return is_taken

    return taken


def offer(items: object, take: Take[T]) -> None:
    """Has the items offered, where they can be."""
    if isinstance(items, Offering):
        items.offer(take)
