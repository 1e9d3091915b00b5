"""Who may call the two HTTP servers; tests/real calls them."""

from pathlib import Path

from p2p_mesh.journal import Entry, Journal
from p2p_mesh.node.web import policy
from p2p_mesh.settings import Settings


def test_listening_makes_a_key_and_shows_it_once(tmp_path: Path) -> None:
    said: list[Entry] = []
    journal = Journal(said.append)
    policies = [policy(Settings(listen=True), tmp_path, journal) for _ in range(2)]
    assert policies[0].api_key == policies[1].api_key is not None
    assert [entry.event for entry in said] == ["api_key"]


def test_given_key_is_demanded(tmp_path: Path) -> None:
    settings = Settings(listen=True, api_key="mine")
    assert policy(settings, tmp_path, Journal()).api_key == "mine"


def test_no_key_is_demanded_on_this_machine(tmp_path: Path) -> None:
    assert policy(Settings(), tmp_path, Journal()).api_key is None
