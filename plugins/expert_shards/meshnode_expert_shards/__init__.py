"""A backend for mixtures of experts that fit no node: each node serves the model with a part of its
experts, alone, and requests go to the node that keeps most of what they need.

Importing this is light: llama.cpp itself is loaded by the workers alone (worker.py).
"""

from __future__ import annotations

meshnode_api = 1
