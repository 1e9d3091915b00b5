"""Members that a node was connected to, on disk."""

from pathlib import Path

from p2p_mesh import state
from p2p_mesh.core.names import MeshId, PeerId
from p2p_mesh.state.peers import MAX_PEERS

MESH = MeshId("0" * 32)


def test_known_peers_are_seeds(tmp_path: Path) -> None:
    assert state.known_peers(tmp_path, MESH) == ()
    state.remember_peers(tmp_path, MESH, [(PeerId("a"), ["/ip4/1.1.1.1/tcp/1", "/ip4/2.2.2.2"])])
    assert state.known_peers(tmp_path, MESH) == (
        "/ip4/1.1.1.1/tcp/1/p2p/a", "/ip4/2.2.2.2/p2p/a",
    )  # fmt: skip


def test_newest_peers_are_kept(tmp_path: Path) -> None:
    for number in range(MAX_PEERS + 5):
        state.remember_peers(tmp_path, MESH, [(PeerId(str(number)), ["/ip4/1.1.1.1"])])
    state.remember_peers(tmp_path, MESH, [(PeerId("10"), ["/ip4/9.9.9.9"]), (PeerId("x"), [])])
    known = state.known_peers(tmp_path, MESH)
    assert len(known) == MAX_PEERS
    assert known[:2] == ("/ip4/9.9.9.9/p2p/10", "/ip4/1.1.1.1/p2p/68")
    assert "/ip4/1.1.1.1/p2p/0" not in known


def test_nothing_new_forgets_nothing(tmp_path: Path) -> None:
    state.remember_peers(tmp_path, MESH, [(PeerId("a"), ["/ip4/1.1.1.1"])])
    state.remember_peers(tmp_path, MESH, [])
    assert state.known_peers(tmp_path, MESH) == ("/ip4/1.1.1.1/p2p/a",)


def test_damaged_file_is_passed_over(tmp_path: Path) -> None:
    state.remember_peers(tmp_path, MESH, [(PeerId("a"), ["/ip4/1.1.1.1"])])
    (tmp_path / "meshes" / MESH / "peers").write_bytes(b"\xc1")
    assert state.known_peers(tmp_path, MESH) == ()
