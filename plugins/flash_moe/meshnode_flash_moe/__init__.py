"""A backend for mixtures of experts that are larger than the memory: what every token needs stays
in it, and the experts that a token is routed to are read from the disk.

Importing this is light: llama.cpp itself is loaded by the workers alone (worker.py).
"""

from __future__ import annotations

meshnode_api = 1
