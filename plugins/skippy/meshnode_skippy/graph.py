"""Two nodes of llama.cpp's graph: the one whose numbers leave a stage, and the one whose numbers
are replaced by what the stage before has computed.

Theory of operation:

1. llama.cpp asks of each node, in the order of the graph, whether it is wanted (nodes.py), and
   tells of the wanted ones when they are computed. Families name their nodes differently, so a
   first graph is only read (`study`), and the two nodes are chosen by name.
2. A call of several sequences is computed as several graphs, each of which has as many rows of
   every sequence in it. `shares` tells which rows those are; the graphs come in that order.
3. An exception cannot pass through llama.cpp: what goes wrong is kept, and raised afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from meshnode_llama_cpp.graphs import graphs
from meshnode_llama_cpp.library import L
from meshnode_llama_cpp.nodes import Tensors, head, watcher
from numpy.typing import NDArray

from meshnode_skippy.wiring import Wiring
from p2p_mesh.errors import ModelError

Floats = NDArray[np.float32]
Numbers = NDArray[np.int32]

INPUTS = frozenset((
    b"embd", b"inp_scaled", b"inp_embd_scaled", b"inpL", b"inp_norm", b"inp_norm-0", b"embd_norm",
    b"hc_init", b"inp_hc",
))  # fmt: skip
"""What block 0 is fed is the last of them that a graph has."""
OUTPUTS = (b"nemotron_h_block_out-%d", b"l_out-%d", b"l_last-%d", b"ffn_residual-%d")
"""A block's output is the first of them that a graph has (nemotron_h: l_out is without what it is
added to).
"""

_FLOAT = 4


def shares(slots: Numbers) -> list[Numbers] | None:
    """Which rows each graph of a call has, in its order; None: all of them are in one, as they are.
    The rows of a sequence stand together, and sequences rise.
    """
    count, steps = len(slots), np.diff(slots)
    if slots[0] == slots[-1] or (steps == 1).all():
        return None
    starts = [0, *(np.flatnonzero(steps) + 1).tolist()]
    counts = [end - start for start, end in zip(starts, [*starts[1:], count], strict=True)]
    owners = [int(slots[start]) for start in starts]
    at, found = dict(zip(owners, starts, strict=True)), list[Numbers]()
    for run, rows in graphs(zip(owners, counts, strict=True)):
        found.append(np.concatenate([np.arange(at[slot], at[slot] + rows) for slot in run]))
        at.update({slot: at[slot] + rows for slot in run})
    return found


class Graph:
    """The two nodes of a stage, in every graph that its context computes."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._tensors = Tensors()
        self._sizes: dict[bytes, int] = {}
        self._entry = self._exit = b""
        self.width = self.width_given = 0
        """Numbers of a row that leaves, and of one that is put in; 0: none."""
        self._shares: Sequence[Numbers | None] = (None,)
        self._rows = 0
        self._entered = self._left = 0
        """Graphs of this call that have come so far."""
        self._given = self._out = np.zeros((0, 0), np.float32)
        self._failure = ""
        watch, self._narrow = watcher(self._tensors.name_offset, self._ask, self._tell)
        self._callback = L.ggml_backend_sched_eval_callback(watch)

    def attach(self, params: Any) -> None:
        """To a context that is not made yet. Nothing but `study` may be computed first."""
        params.cb_eval = self._callback

    def study(self, name: str, rows: int) -> None:
        """After a call of one row: finds the nodes. `rows`: of the largest call. ModelError where
        the graph of this model has none of their names.
        """
        if self._wiring.entry == "inject":
            block = self._wiring.entry_block
            self._entry = self._find(name, _inputs(self._sizes) if block is None else _of(block))
            self.width_given = self._sizes[self._entry] // _FLOAT
        if self._wiring.exit_block is not None:
            self._exit = self._find(name, _of(self._wiring.exit_block))
            self.width = self._sizes[self._exit] // _FLOAT
            self._out = np.empty((rows, self.width), np.float32)
        wanted = [one for one in (self._entry, self._exit) if one]
        self._narrow(frozenset(map(head, wanted)))
        self._sizes.clear()

    def _find(self, model: str, names: Sequence[bytes]) -> bytes:
        found = next((one for one in names if one in self._sizes), None)
        if found is None:
            wanted = b" or ".join(names or sorted(INPUTS)).decode()
            raise ModelError(f"{model} computes nothing that is named {wanted}")
        return found

    def begin(self, rows: int, shares: Sequence[Numbers] | None, given: Floats | None) -> None:
        """Before a call, with the rows that each of its graphs has; None: one has all."""
        self._shares, self._rows = shares or (None,), rows
        self._entered = self._left = 0
        self._failure = ""
        if given is not None:
            self._given = given

    def end(self, rows: int) -> Floats | None:
        """After it: what leaves. RuntimeError where a node did not come by, or was another."""
        graphs = len(self._shares)
        entered = self._entered if self._entry else graphs
        left = self._left if self._exit else graphs
        if self._failure or entered != graphs or left != graphs:
            came = f"of {graphs} graphs, {entered} took the activation and {left} gave one"
            raise RuntimeError(self._failure or came)
        return self._out[:rows] if self._exit else None

    # What llama.cpp calls

    def _ask(self, tensor: int) -> bool:
        name = self._tensors.name(tensor)
        if self._exit or self._entry:
            return name == self._exit or name == self._entry
        self._sizes[name] = self._tensors.size(tensor)
        return False

    def _tell(self, tensor: int) -> bool:
        """Answers whether to go on computing."""
        if self._tensors.name(tensor) == self._entry:
            return self._enter(tensor)
        return self._leave(tensor)

    def _enter(self, tensor: int) -> bool:
        rows = self._share(self._entered)
        self._entered += 1
        part = self._given if rows is None else self._given[rows]
        if not self._fits(tensor, part.nbytes):
            return False
        self._tensors.write(tensor, part.ctypes.data, 0, part.nbytes)
        return True

    def _leave(self, tensor: int) -> bool:
        rows = self._share(self._left)
        self._left += 1
        if rows is None:
            part = self._out[: self._rows]
        else:
            part = np.empty((len(rows), self.width), np.float32)
        if not self._fits(tensor, part.nbytes):
            return False
        self._tensors.read(tensor, part.ctypes.data, 0, part.nbytes)
        if rows is not None:
            self._out[rows] = part
        return not self._wiring.stops

    def _share(self, place: int) -> Numbers | None:
        """Of a graph; one that was not expected is found out in the end."""
        return self._shares[min(place, len(self._shares) - 1)]

    def _fits(self, tensor: int, expected: int) -> bool:
        size = int(self._tensors.size(tensor))
        if size != expected:
            name = self._tensors.name(tensor).decode(errors="replace")
            self._failure = f"{name} has {size} bytes, not {expected}"
        return size == expected


def _inputs(names: Iterable[bytes]) -> Sequence[bytes]:
    return [one for one in names if one in INPUTS][-1:]


def _of(block: int) -> Sequence[bytes]:
    return [one % block for one in OUTPUTS]
