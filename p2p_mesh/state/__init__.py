"""What a node keeps on disk: its lock, its mesh, and how the commands find it.

DIR/lock        held while a node runs on DIR
DIR/node.json   of the running node: pid, URLs, the token of its management port (0600)
DIR/node.key    the node's identity (net/identity.py)
DIR/mesh.key    the private key of a mesh: the one that this node founded, or was given (0600)
DIR/api.key     the key that --listen asks for, where none was given (0600)
DIR/mesh        the mesh that this node belongs to, and its credential (0600)
DIR/meshes/ID/  of each mesh that this node has been in (0600 each)
    mesh        as above, as of the last time
    peers       members that it was connected to, and where they listen
    revocation  the newest revocation
    invites     the invites made here, and who redeemed them, where this node holds the mesh key
    arrivals    members, and by which invite each came, where this node holds the mesh key
"""

from p2p_mesh.state.belonging import (
    Belonging,
    awaiting,
    belong,
    choose,
    mesh_key,
    meshes,
    remember,
)
from p2p_mesh.state.directory import NodeFile, api_key, locked, published, running
from p2p_mesh.state.inviter import Inviter, InviteStatus
from p2p_mesh.state.keys import Rotated, export_mesh, import_mesh, rotate_identity
from p2p_mesh.state.peers import known_peers, remember_peers
from p2p_mesh.state.revocation import keep_revocation, revocation

__all__ = [
    "Belonging",
    "InviteStatus",
    "Inviter",
    "NodeFile",
    "Rotated",
    "api_key",
    "awaiting",
    "belong",
    "choose",
    "export_mesh",
    "import_mesh",
    "keep_revocation",
    "known_peers",
    "locked",
    "mesh_key",
    "meshes",
    "published",
    "remember",
    "remember_peers",
    "revocation",
    "rotate_identity",
    "running",
]
