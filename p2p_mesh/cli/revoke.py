"""`meshnode revoke`: takes back an invite, or a peer's membership."""

from __future__ import annotations

import click

from p2p_mesh.cli import output
from p2p_mesh.cli.client import Client, data_dir_option, json_option
from p2p_mesh.cli.names import complete_peer, find_peer, is_invite, is_peer_id
from p2p_mesh.core.invite import TOKEN_PREFIX


@click.command("revoke")
@click.argument("what", metavar="INVITE|PEER", shell_complete=complete_peer)
@data_dir_option
@json_option
def command(what: str, data_dir: str | None, as_json: bool) -> None:
    """Put a peer out of the mesh, or take an invite back, for good.

    INVITE is the id that `meshnode invites` shows, or the token itself: all that came by it are
    out. PEER is a peer id, or the name of a node that no other peer has: it is out, and nobody new
    comes in by its invite. Connected nodes act at once; the running node must hold the mesh key.
    Nothing is asked before, and nothing undoes it.

    \b
    Examples:
      meshnode revoke bob
      meshnode revoke 12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X
      meshnode revoke 5f0c1be09a7d
    """
    client = Client.find(data_dir)
    peers = client.get("/api/status")["peers"]
    if not (is_invite(what) or is_peer_id(what)):
        what = find_peer(what, peers)
    done = client.post("/api/revocations", {"what": what})
    if as_json:
        output.as_json(done)
        return
    kind = "peer" if is_peer_id(what) else "invite"
    output.line(f"Revoked the {kind} {shown(what)}")
    names = {one["peer_id"]: one["name"] for one in peers}
    for peer in done["peers"]:
        output.line(f"  out: {peer}  {names.get(peer) or ''}".rstrip())
    if done["invite"] is None:
        output.line(
            "  No invite was closed: by which one it came is not known here. If it has a token, it "
            "can come back\n  with another key: revoke that invite as well (meshnode invites)"
        )


def shown(what: str) -> str:
    """A token is a secret, and does not go to the terminal again."""
    return "of that token" if what.startswith(TOKEN_PREFIX) else what
