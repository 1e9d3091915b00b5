"""What the network asks of its node: the node, and the nodes of tests, supply all of it."""

import inspect

import pytest

from p2p_mesh.net.handlers import Handlers
from p2p_mesh.node.members import Members
from p2p_mesh.testing.members import Node

NAMES = [name for name in vars(Handlers) if not name.startswith("_")]


@pytest.mark.parametrize("kind", [Members, Node])
@pytest.mark.parametrize("name", NAMES)
def test_handler_is_there_and_takes_what_it_is_given(kind: type, name: str) -> None:
    wanted = inspect.signature(getattr(Handlers, name)).parameters
    assert len(inspect.signature(getattr(kind, name)).parameters) == len(wanted)
