"""Machines of a test; tests/real/test_namespaces.py starts nodes on them."""

from p2p_mesh.testing.machines import Machine


def test_commands_run_on_a_machine_by_their_prefix() -> None:
    machine = Machine("meshnode-1-a", "10.100.0.1", "mn1x1")
    assert machine.prefix == ("ip", "netns", "exec", "meshnode-1-a")
