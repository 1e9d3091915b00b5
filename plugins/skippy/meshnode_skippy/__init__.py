"""A backend for models that are larger than one machine: layer ranges, on several nodes, in a ring.

Importing this is light: llama.cpp itself is loaded by the workers alone (worker.py).
"""

from __future__ import annotations

from meshnode_skippy.backend import Skippy
from p2p_mesh.hookspecs import hookimpl
from p2p_mesh.serve.backend import Backend

meshnode_api = 1


@hookimpl
def meshnode_backends() -> list[Backend]:
    return [Skippy()]
