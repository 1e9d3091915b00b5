"""A model whose trunk is in memory, and whose experts come when they are wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.library import L
from meshnode_llama_cpp.model import Model

from meshnode_flash_moe import shadow
from meshnode_flash_moe.arena import Arena, outer
from meshnode_flash_moe.reader import Part, Reader, measure
from meshnode_flash_moe.resident import Experts, Slices
from meshnode_flash_moe.tap import Tap
from p2p_mesh.core import package
from p2p_mesh.core.experts.layout import Layout, layout
from p2p_mesh.core.gguf import Header
from p2p_mesh.errors import ModelError


class FlashModel(Model):
    """Loaded, with its trunk read in."""

    def __init__(
        self, paths: Sequence[Path], *, name: str, progress: Callable[[float], None]
    ) -> None:
        """`paths`: the files it is split into, the first first. Raises ModelError."""
        self._paths = list(paths)
        self._headers = shadow.headers(self._paths)
        self.layout = _layout(self._headers, name)
        super().__init__(str(paths[0]), name=name, progress=lambda _: None)
        try:
            self.arena = Arena(self._regions)
            self.reader = self._reader()
            for share in self._read_trunk():
                progress(share)
        except (OSError, LookupError) as error:
            raise ModelError(f"{name} cannot be read: {error}") from error

    @property
    def places(self) -> dict[int, int]:
        """The place of each layer that has experts."""
        return {layer.number: place for place, layer in enumerate(self.layout.layers)}

    @property
    def slices(self) -> list[list[Slices]]:
        """Where the experts of each of those layers stand."""
        files = {one.name: number for number, header in enumerate(self._headers)
                 for one in header.tensors}  # fmt: skip
        return [
            [Slices(files[one.name], one.offset, one.size) for one in layer.weights]
            for layer in self.layout.layers
        ]

    def _load(self, path: str, params: Any) -> Any:
        def open_file(first: bytes) -> Any:
            return L.llama_model_load_from_file(first, params)

        handle, self._regions = shadow.load(self._paths, self._headers, params, open_file)
        return handle

    def _reader(self) -> Reader:
        """As the disk is fastest, for parts as large as an expert's."""
        size = max(one.size for layer in self.layout.layers for one in layer.weights)
        largest = max(self._paths, key=lambda path: path.stat().st_size)
        depth, _ = measure(largest, size=size)
        return Reader(self._paths, depth=depth)

    def _read_trunk(self) -> Iterator[float]:
        parts = list(self._trunk())
        total, done = sum(len(part.target) for part in parts), 0
        for part in parts:
            self.reader.post(part)
            self.reader.wait()
            done += len(part.target)
            yield done / total

    def _trunk(self) -> Iterator[Part]:
        """All that is no expert's weight, in whole pages."""
        experts = {one.name for layer in self.layout.layers for one in layer.weights}
        layers = run_layers(self._headers[0])
        for number, header in enumerate(self._headers):
            for one in header.tensors:
                home = package.home(one.name)
                is_run = not isinstance(home, int) or home < layers
                if is_run and one.name not in experts and one.size:
                    address = self.arena.address(number, one.offset)
                    pages = outer(address, address + one.size)
                    offset = one.offset - (address - pages[0])
                    yield Part(number, offset, self.arena.view(pages))


class FlashContext(Context):
    """A context that waits for the experts."""

    def __init__(self, model: FlashModel, plan: Plan, *, room: int) -> None:
        """`room`: bytes for experts. Raises ModelError."""
        layout, self._name = model.layout, model.name
        self.experts = Experts(
            model.slices,
            model.arena,
            model.reader,
            experts=layout.experts,
            used=layout.used,
            room=room,
        )
        self._tap = Tap(model.places, experts=layout.experts, need=self.experts.need)
        super().__init__(model, plan)

    def decode(self) -> None:
        begun = time.perf_counter()
        super().decode()
        self._tap.end()
        self.experts.spent.rows += self.rows.batch.n_tokens
        self.experts.spent.all += time.perf_counter() - begun

    def fill(self) -> Iterator[float]:
        """Reads all experts, which stay from then on; tells the share that is there."""
        yield from self.experts.fill()
        self._tap.stop()

    def _adapt(self, params: Any) -> None:
        params.op_offload = False
        self._tap.attach(params)

    def _warm(self, token: int) -> None:
        super()._warm(token)
        self._tap.check(self._name)


def _layout(headers: Sequence[Header], name: str) -> Layout:
    """Of all files together, and of the layers that are run. The keys that count are in the first
    file.
    """
    tensors = tuple(one for header in headers for one in header.tensors)
    found = layout(Header(headers[0].metadata, tensors))
    if found is None:
        raise ModelError(f"{name} is no mixture of experts: it has nothing to read as it is wanted")
    layers = run_layers(headers[0])
    return replace(found, layers=tuple(one for one in found.layers if one.number < layers))


def run_layers(header: Header) -> int:
    """Those that llama.cpp loads: the last ones of some models only guess ahead."""
    return header.number("block_count") - header.number("nextn_predict_layers")
