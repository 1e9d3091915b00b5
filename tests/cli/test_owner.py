"""`meshnode owner key`."""

import json
from pathlib import Path

import pytest

from p2p_mesh.cli.main import execute
from p2p_mesh.core.control import read_owner
from p2p_mesh.core.signature import public_bytes
from p2p_mesh.state.owner import owner_key


def test_key_is_made_and_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "new"
    assert execute(["owner", "key", "--data-dir", str(directory)]) == 0
    said = capsys.readouterr()
    assert read_owner(said.out) == public_bytes(owner_key(directory))
    assert f"--accept-owner {said.out}" in said.err  # standard output holds the key alone
    assert execute(["owner", "key", "--json", "--data-dir", str(directory)]) == 0
    assert json.loads(capsys.readouterr().out) == {"owner": said.out.strip()}


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["owner"], ["owner", "key"]):
        assert execute([*words, "--help"]) == 0
        assert "Examples:" in capsys.readouterr().out
