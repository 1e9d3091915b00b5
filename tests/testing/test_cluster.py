"""What a node that is started for a test is told; tests/real starts them."""

from p2p_mesh.testing.cluster import _unless


def test_ports_are_free_ones_unless_given() -> None:
    assert _unless(("--name", "x"), "--port", "0") == ["--port", "0"]
    assert _unless(("--port", "9337"), "--port", "0") == []
