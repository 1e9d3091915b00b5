"""A backend for mixtures of experts that are larger than the memory: what every token needs stays
in it, and the experts that a token is routed to are read from the disk.

Importing this is light: llama.cpp itself is loaded by the workers alone (worker.py).
"""

from __future__ import annotations

from meshnode_flash_moe.backend import FlashMoe
from p2p_mesh.hookspecs import hookimpl
from p2p_mesh.serve.backend import Backend

meshnode_api = 1


@hookimpl
def meshnode_backends() -> list[Backend]:
    return [FlashMoe()]
