"""The entry point: commands are imported only when they are used, and every error is a line."""

from __future__ import annotations

import importlib
import os
import sys

import click

from p2p_mesh import __version__
from p2p_mesh.errors import MeshError, ModelError, SettingsError

_COMMANDS = {
    "run": "p2p_mesh.cli.run",
    "status": "p2p_mesh.cli.status",
    "invite": "p2p_mesh.cli.invite",
    "invites": "p2p_mesh.cli.invites",
    "revoke": "p2p_mesh.cli.revoke",
    "load": "p2p_mesh.cli.load",
    "unload": "p2p_mesh.cli.unload",
    "plan": "p2p_mesh.cli.plan",
    "control": "p2p_mesh.cli.control",
    "owner": "p2p_mesh.cli.owner",
    "mesh": "p2p_mesh.cli.mesh",
    "rotate-key": "p2p_mesh.cli.rotation",
    "package": "p2p_mesh.cli.package",
    "plugins": "p2p_mesh.cli.plugins",
    "completion": "p2p_mesh.cli.completion",
}

_HELP = """Several machines, one OpenAI endpoint.

\b
Examples:
  meshnode run                          start a node on the bundled model
  meshnode run --model qwen3-8b.gguf    serve a model of your own
  meshnode run --join @token.txt        join a friend's mesh
  meshnode status                       what the running node does
  meshnode load qwen3-8b.gguf           have it serve one more model
"""


class Commands(click.Group):
    """meshnode's own commands, by name, and those of plugins after them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._add_plugins()
        return [*_COMMANDS, *sorted(set(self.commands) - set(_COMMANDS))]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in _COMMANDS and name not in self.commands:
            module = importlib.import_module(_COMMANDS[name])
            self.add_command(module.command, name)
        if name not in self.commands:
            self._add_plugins()
        return self.commands.get(name)

    def _add_plugins(self) -> None:
        if self.params_added:
            return
        self.params_added = True
        plugins = importlib.import_module("p2p_mesh.plugins").Plugins()
        plugins.load()
        for name in _COMMANDS:  # a plugin may not take the name of one of ours
            self.add_command(importlib.import_module(_COMMANDS[name]).command, name)
        plugins.commands(self)

    params_added = False


@click.group(
    cls=Commands,
    help=_HELP,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--version", is_flag=True, help="Show the version and leave.")
@click.option("--json", "as_json", is_flag=True, help="With --version: as JSON.")
@click.pass_context
def group(ctx: click.Context, version: bool, as_json: bool) -> None:
    from p2p_mesh.cli import output

    if version and as_json:
        output.as_json({"version": __version__})
    elif version:
        output.line(output.VERSION_LINE)
    elif ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Runs the command; ends with 2 for what the user can mend, with 1 for other errors."""
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: list[str]) -> int:
    try:
        result = group.main(arguments, prog_name="meshnode", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.Abort:
        return 130
    except click.exceptions.NoArgsIsHelpError as error:  # a group, and no command of it
        click.echo(str(error), err=True)
        return 2
    except click.UsageError as error:
        return _say(f"{error.format_message()} (see `{_path(error)} --help`)", 2)
    except click.ClickException as error:
        return _say(error.format_message(), error.exit_code)
    except MeshError as error:
        return _say(str(error), 2 if isinstance(error, SettingsError | ModelError) else 1)
    except OSError as error:
        return _without_output(error)
    return result if isinstance(result, int) else 0


def _without_output(error: OSError) -> int:
    """Standard output cannot be written: its reader has left, or its disk is full."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())  # what is still buffered must not fail again at the end
    os.close(nowhere)
    if isinstance(error, BrokenPipeError):
        return 1
    return _say(f"the output cannot be written: {error.strerror}", 1)


def _path(error: click.UsageError) -> str:
    return error.ctx.command_path if error.ctx else "meshnode"


def _say(message: str, code: int) -> int:
    from p2p_mesh.cli import output

    output.error(message)
    return code
