"""Errors out of nurseries, bare: so that callers catch them by their type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


@contextmanager
def bare() -> Iterator[None]:
    """Raises the first error of a group in the group's place. A group in which everything was
    only cancelled passes as it is; trio knows what to do with it.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        _, failures = group.split(trio.Cancelled)
        if failures is None:
            raise
        first = _first(failures)
        raise first from first.__cause__


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
