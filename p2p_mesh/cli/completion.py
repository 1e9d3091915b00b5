"""`meshnode completion`: the shell's own completion script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from p2p_mesh.errors import SettingsError


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a completion script for a shell.

    \b
    Examples:
      meshnode completion bash >> ~/.bashrc
      meshnode completion fish > ~/.config/fish/completions/meshnode.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise SettingsError(f"there is no completion for {shell}")
    click.echo(kind(ctx.find_root().command, {}, "meshnode", "_MESHNODE_COMPLETE").source())
