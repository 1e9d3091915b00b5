"""`meshnode invite`: a token for somebody else."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import click

from p2p_mesh.cli import output
from p2p_mesh.cli.client import Client, data_dir_option, json_option
from p2p_mesh.core.invite import MAX_USES
from p2p_mesh.errors import SettingsError

_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@click.command("invite")
@click.option(
    "--role",
    type=click.Choice(["member", "client"]),
    default="member",
    help="A client asks; a member also serves.  [default: member]",
)
@click.option(
    "--until",
    metavar="TIME",
    help="When memberships from this invite end: 30d, 12h, 2027-01-31.  [default: never]",
)
@click.option(
    "--uses",
    metavar="N",
    type=click.IntRange(1, MAX_USES),
    help="How many nodes may join by it.  [default: any number]",
)
@click.option(
    "--join-by",
    metavar="TIME",
    help="Until when nodes may join by it, as --until.  [default: always]",
)
@data_dir_option
@json_option
def command(
    role: str,
    until: str | None,
    uses: int | None,
    join_by: str | None,
    data_dir: str | None,
    as_json: bool,
) -> None:
    """Make an invite to the mesh of the running node.

    Whoever has the token can join: treat it like a password. With --uses or --join-by, whoever
    joins must reach this node, or another that holds the mesh key, which counts.

    \b
    Examples:
      meshnode invite
      meshnode invite --role client --until 30d
      meshnode invite --uses 1 --join-by 2d
      meshnode invite --json | jq -r .invite > token.txt
    """  # fmt: skip
    now = output.now()
    asked = {
        "role": role,
        "until": None if until is None else read_time(until, now, "--until"),
        "uses": uses,
        "join_by": None if join_by is None else read_time(join_by, now, "--join-by"),
    }
    made = Client.find(data_dir).post("/api/invites", asked)
    if as_json:
        output.as_json({"invite": made["invite"], **asked})
    else:
        output.line(made["invite"])


def read_time(text: str, now: datetime, flag: str) -> int:
    """Unix seconds of `30d` from now, or of a date. Raises SettingsError, which names the flag."""
    span = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    if span:
        return int(now.timestamp()) + int(span[1]) * _UNITS[span[2]]
    try:
        date = datetime.fromisoformat(text)
    except ValueError as error:
        raise SettingsError(
            f"{flag} {text!r} is no time; write 30d, 12h, 45m, 2w or a date like 2027-01-31"
        ) from error
    end = date if date.tzinfo else date.replace(tzinfo=UTC)
    if end <= now:
        raise SettingsError(f"{flag} {text} lies in the past")
    return int(end.timestamp())
