"""llama.cpp as this package uses it: loaded, quiet but for warnings, with its devices named.

Only engine processes import this: it maps the libraries and numpy, and takes a third of a second.
"""

from __future__ import annotations

import ctypes
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp.llama_cpp as L

__all__ = ["Device", "L", "complaint", "devices", "log", "numerics", "open_library",
           "start"]  # fmt: skip

_INFO, _WARNING, _ERROR, _CONTINUES = 2, 3, 4, 5  # GGML_LOG_LEVEL_*
_MOST_COMPLAINTS = 16
_GPU_TYPES = {1, 2}  # GGML_BACKEND_DEVICE_TYPE_GPU, _IGPU
_last_level = _INFO
_complaints: list[str] = []


@L.llama_log_callback  # type: ignore[untyped-decorator]
def log(level: int, text: bytes, _data: Any) -> None:
    """Warnings and errors to stderr, where the node keeps the last lines. Lives as long as the
    module: llama.cpp keeps the pointer.
    """
    global _last_level
    _last_level = _last_level if level == _CONTINUES else level
    if level == _ERROR and len(_complaints) < _MOST_COMPLAINTS:
        _complaints.append(text.decode(errors="replace").strip())
    if _last_level in (_WARNING, _ERROR):
        os.write(2, text)


def start() -> None:
    """Once per process, before anything else of llama.cpp."""
    L.llama_log_set(log, None)
    L.llama_backend_init()


def complaint() -> str:
    """The first error that llama.cpp has told since the last call: the others follow from it."""
    first = _complaints[0] if _complaints else "it says nothing"
    _complaints.clear()
    return first[:300]


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    free: int
    """Bytes."""


def devices() -> list[Device]:
    """The accelerators with memory that llama.cpp would use; none means the CPU."""
    if not L.llama_supports_gpu_offload():
        return []
    registry, base = open_library("ggml"), open_library("ggml-base")
    registry.ggml_backend_dev_count.restype = ctypes.c_size_t
    registry.ggml_backend_dev_get.restype = ctypes.c_void_p
    registry.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    found = map(registry.ggml_backend_dev_get, range(registry.ggml_backend_dev_count()))
    return [known for device in found if (known := _accelerator(base, device))]


def numerics(
    device: str, rows: int, *, kv_type: str, exact: bool, projector: Path | None = None
) -> str:
    """What floating point depends on, in one line; with a projector, images depend on its file.
    Where it says `exact`, equal lines mean equal answers; elsewhere an answer also depends on what
    is computed beside it.
    """
    features = zlib.crc32(L.llama_print_system_info())
    version = f"llama.cpp {L.llama_version().decode()} ({llama_cpp.__version__})"
    kind = "exact" if exact else "usual"
    eyes = "" if projector is None else f" mmproj={_fingerprint(projector)}"
    return f"{version} {features:08x} kv={kv_type} rows={rows} {kind} {device}{eyes}"[:256]


def _fingerprint(path: Path) -> str:
    """Tells two projectors apart; a whole digest would take as long as to load one."""
    with path.open("rb") as file:
        return f"{path.stat().st_size:x}-{zlib.crc32(file.read(1 << 20)):08x}"


def open_library(name: str) -> ctypes.CDLL:
    """One of ggml's, by the name that libllama links to: under another one, a second copy would
    be mapped.
    """
    folder = Path(llama_cpp.__file__).parent / "lib"
    linked = folder / f"lib{name}.so.0"
    return ctypes.CDLL(str(linked if linked.exists() else folder / f"lib{name}.dylib"))


def _accelerator(base: ctypes.CDLL, device: int) -> Device | None:
    base.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    base.ggml_backend_dev_description.argtypes = [ctypes.c_void_p]
    base.ggml_backend_dev_description.restype = ctypes.c_char_p
    base.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p] + [
        ctypes.POINTER(ctypes.c_size_t)
    ] * 2
    if base.ggml_backend_dev_type(device) not in _GPU_TYPES:
        return None
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    base.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    name: bytes = base.ggml_backend_dev_description(device)
    return Device(name.decode(errors="replace"), free.value) if free.value else None
