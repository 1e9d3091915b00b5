"""A backend over llama.cpp: one engine process for each model.

Importing this is light: llama.cpp itself is loaded by the engine process alone (worker.py).
"""

from __future__ import annotations

from meshnode_llama_cpp.backend import LlamaCpp
from p2p_mesh.hookspecs import hookimpl
from p2p_mesh.serve.backend import Backend

meshnode_api = 1


@hookimpl
def meshnode_backends() -> list[Backend]:
    return [LlamaCpp()]
