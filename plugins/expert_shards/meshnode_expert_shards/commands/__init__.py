"""`meshnode experts`: measure which experts a model uses, plan its expert shards, write them."""

from __future__ import annotations

import click

from meshnode_expert_shards.commands import analyze, plan, split


@click.group("experts")
def command() -> None:
    """Mixtures of experts that fit no machine: measure which experts are used, and give each of
    several nodes a part of them.

    \b
    Examples:
      meshnode experts analyze qwen3-30b-a3b-q4_k_m.gguf
      meshnode experts plan qwen3-30b-a3b-q4_k_m.gguf --nodes 3
      meshnode experts split qwen3-30b-a3b-q4_k_m.gguf --nodes 3 --node 1
    """


for one in (analyze.command, plan.command, split.command):
    command.add_command(one)
