"""Events go to every listener, in order."""

from p2p_mesh.journal import Entry, Journal


def test_every_listener_hears_every_entry() -> None:
    first: list[Entry] = []
    second: list[Entry] = []
    journal = Journal(first.append)
    journal.info("a", "it began", port=1)
    journal.listen(second.append)
    journal.error("b", "it broke")
    journal.warning("c", "careful")
    journal.debug("d", "detail")
    assert first[0] == Entry("info", "a", "it began", {"port": 1})
    assert [entry.level for entry in second] == ["error", "warning", "debug"]
