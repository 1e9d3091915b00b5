"""The hooks are what docs/plugins.md says they are."""

import inspect
from pathlib import Path

import pytest

from p2p_mesh import hookspecs

HOOKS = [name for name in dir(hookspecs) if name.startswith("meshnode_")]
PAGE = Path(__file__).parents[1] / "docs" / "plugins.md"


def test_there_are_six() -> None:
    assert HOOKS == [
        "meshnode_backends",
        "meshnode_commands",
        "meshnode_event",
        "meshnode_routes",
        "meshnode_sources",
        "meshnode_topics",
    ]


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_stands_in_the_docs_with_its_signature(name: str) -> None:
    signature = f"{name}{inspect.signature(getattr(hookspecs, name))}"
    assert signature.replace("'", "") in PAGE.read_text()
