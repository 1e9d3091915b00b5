"""A backend for mixtures of experts that fit no node: each node serves the model with a part of its
experts, alone, and requests go to the node that keeps most of what they need.

Importing this is light: llama.cpp itself is loaded by the workers alone (worker.py).
"""

from __future__ import annotations

import click

from meshnode_expert_shards.backend import ExpertShards
from p2p_mesh.hookspecs import hookimpl
from p2p_mesh.serve.backend import Backend

meshnode_api = 1


@hookimpl
def meshnode_backends() -> list[Backend]:
    return [ExpertShards()]


@hookimpl
def meshnode_commands(group: click.Group) -> None:
    from meshnode_expert_shards.commands import command

    group.add_command(command)
