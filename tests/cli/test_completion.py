"""Completion scripts."""

import pytest

from p2p_mesh.cli.main import execute


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_script_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["completion", shell]) == 0
    assert "_MESHNODE_COMPLETE" in capsys.readouterr().out


def test_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["completion", "tcsh"]) == 2
    assert "tcsh" in capsys.readouterr().err
