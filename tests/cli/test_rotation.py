"""`meshnode rotate-key`."""

import json
from pathlib import Path

import pytest

from p2p_mesh import state
from p2p_mesh.cli.main import execute


def test_node_gets_another_identity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["rotate-key", "--json", "--data-dir", str(tmp_path)]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["before"] != first["after"]
    assert execute(["rotate-key", "--data-dir", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"The node was {first['after']}, and is 12D3")
    assert f"meshnode revoke {first['after']}" in said.err


def test_running_node_keeps_its_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with state.locked(tmp_path):
        assert execute(["rotate-key", "--data-dir", str(tmp_path)]) == 1
    assert "stop it" in capsys.readouterr().err
    assert not (tmp_path / "node.key").exists()
