"""The tree of errors, and its way over the wire."""

import pytest

from p2p_mesh import errors
from p2p_mesh.errors import MeshError, Overloaded, RemoteError, from_code

KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MeshError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_stands_in_the_drawn_tree(kind: type[MeshError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")


def test_codes_differ() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not MeshError])
def test_code_gives_the_error_back(kind: type[MeshError]) -> None:
    error = from_code(kind.code, "why", param="p", retry_after=2.0)
    assert type(error) is kind
    assert (str(error), error.param, error.retry_after) == ("why", "p", 2.0)


def test_unknown_code_is_the_peers_fault() -> None:
    assert type(from_code("?", "why")) is RemoteError


def test_status_hints() -> None:
    assert (Overloaded.status, errors.UnknownModel.status) == (429, 404)
