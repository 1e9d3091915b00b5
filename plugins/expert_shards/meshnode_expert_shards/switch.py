"""Turns llama.cpp's questions about the nodes of its graph on and off, between two calls.

A context takes a callback when it is made, and then asks it of each node of each call, some 33
times for each layer: too much for every token, where it is wanted for one call of a prompt. There
is no function that takes it away. So two places are written to that hold it: the context's
parameters, from which it goes to each new graph, and the scheduler, which computes the graph that
there is. Both have an accessor in the library. Where the callback stands in the parameters is
looked for, by its own address beside a mark; a version that has it in another form is not touched.
"""

from __future__ import annotations

import ctypes
from typing import Any

from meshnode_llama_cpp.library import L, open_library

_PARAMETERS = "_ZNK13llama_context11get_cparamsEv"
_SCHEDULER = "_ZNK13llama_context9get_schedEv"
_WORDS = 64
"""Of the parameters that are looked through: they have some 40, and the context goes on."""


class Switch:
    """Of one callback, for one context."""

    def __init__(self, callback: Any) -> None:
        self._callback = callback
        self._mark = ctypes.create_string_buffer(1)
        self._handle: Any = None
        self._scheduler: Any = None
        self._place: int | None = None
        self._set = open_library("ggml-base").ggml_backend_sched_set_eval_callback
        self._set.restype, self._set.argtypes = None, [ctypes.c_void_p] * 3

    @property
    def _pair(self) -> tuple[int, int]:
        address = ctypes.cast(self._callback, ctypes.c_void_p).value
        return address or 0, ctypes.addressof(self._mark)

    def attach(self, params: Any) -> None:
        """To a context that is not made yet."""
        params.cb_eval, params.cb_eval_user_data = self._callback, ctypes.addressof(self._mark)

    def find(self, handle: Any) -> bool:
        """Once it is made: whether it can be turned off at all."""
        try:
            address = _accessor(_PARAMETERS)(handle)
            self._scheduler = _accessor(_SCHEDULER)
        except AttributeError:
            return False
        self._handle = handle
        self._words = (ctypes.c_uint64 * _WORDS).from_address(address)
        words = list(self._words)
        places = [place for place in range(_WORDS - 1)
                  if (words[place], words[place + 1]) == self._pair]  # fmt: skip
        self._place = places[0] if len(places) == 1 else None
        return self._place is not None

    def turn(self, *, on: bool) -> None:
        """Before a call. Only where it was found."""
        assert self._place is not None
        callback, mark = self._pair
        self._words[self._place] = callback if on else 0
        scheduler = self._scheduler(self._handle)  # it may be another one now
        self._set(scheduler, callback if on else None, mark if on else None)


def _accessor(name: str) -> Any:
    """AttributeError where this version has none of that name."""
    found = L._lib[name]
    found.restype, found.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    return found
