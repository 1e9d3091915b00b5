"""The certification finds what is wrong: a wire that is disturbed by a thousandth, a process that
dies, cuts that cannot be.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts/benches"))

# Scripts are programs, not a package: mypy does not look there, and the path comes first.
from certification import child, children, cuts, story, table, verdict  # type: ignore[import-not-found]
from meshnode_llama_cpp.library import start

from p2p_mesh.testing.models import WINDOW, Kind, Shape, write_model


def certified(folder: Path, kind: Kind = "llama", *, deep: bool = False, **more: Any) -> Any:
    """A model of four layers."""
    start()
    path = folder / f"{kind}.gguf"
    write_model(path, kind=kind, shape=Shape(layers=4))
    given = {"disturb": 0.0, "done": (), **more}
    found = verdict.Verdict(kind, deep=deep)
    for line in child.work(child.Job(str(path), str(folder), deep, **given)):
        found.hear(json.loads(json.dumps(line)))
    return found


def missed(*verdicts: Any) -> set[str]:
    return {one.name for one in verdict.figures(verdicts, whole=False) if not one.holds}


@pytest.mark.parametrize("kind", ["llama", "hybrid"])
def test_stages_are_exact(tmp_path: Path, kind: Kind) -> None:
    found = certified(tmp_path, kind)
    assert (found.kind, found.worst, found.layers) == ("exact", 0.0, 4)
    assert set(found.differences) == set(cuts.cuts(4))
    assert missed(found) == set()


@pytest.mark.parametrize("kind", ["llama", "recurrent"])
def test_wire_disturbed_by_a_thousandth_is_noticed(tmp_path: Path, kind: Kind) -> None:
    found = certified(tmp_path, kind, disturb=0.001)
    assert found.kind == "wrong"
    assert set(found.failures) == {verdict.name(cut) for cut in cuts.cuts(4)}
    assert missed(found) == {"wrong"}


def test_deeper_model_is_certified_with_a_prompt_past_its_window(tmp_path: Path) -> None:
    found = certified(tmp_path, "sliding", deep=True)
    assert (found.kind, found.layers, found.whole["trims"]) == ("exact", 8, False)
    assert story.LONG > WINDOW


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    done = tuple(cut for cut in cuts.cuts(4) if cut != (2,))
    assert list(certified(tmp_path, done=done).differences) == [(2,)]


def test_refusal_is_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_model(path)
    path.write_bytes(path.read_bytes().replace(b"llama", b"lloma"))
    lines = list(child.work(child.Job(str(path), str(tmp_path), False, 0.0, ())))
    assert len(lines) == 1
    assert "lloma" in lines[0]["refused"]


class Picky:
    """Cannot be cut before its third layer."""

    total = 4

    def obstacle(self, start: int, end: int) -> str:
        return "never there" if 3 in (start, end) else ""


def test_every_boundary_is_cut_and_some_in_three() -> None:
    assert cuts.cuts(2) == [(1,)]
    assert cuts.cuts(3) == [(1,), (2,), (1, 2)]
    six = cuts.cuts(6)
    assert {(1,), (2,), (3,), (4,), (5,), (2, 4), (3, 4), (1, 5), (2, 3)} == set(six)
    assert cuts.ranges((2, 4), 6) == [(0, 2), (2, 4), (4, 6)]
    assert cuts.obstacle(Picky(), (1, 2)) == ""
    assert cuts.obstacle(Picky(), (1, 3)) == "never there"


def heard(*lines: dict[str, Any], fixture: str = "m", deep: bool = False) -> Any:
    found = verdict.Verdict(fixture, deep=deep)
    for line in lines:
        found.hear(line)
    return found


def cut(at: int, difference: float = 0.0) -> dict[str, Any]:
    return {"cut": [at], "difference": difference, "why": "", "entries": ["rows", "inject"],
            "fillers": 1}  # fmt: skip


def test_fixture_is_what_its_worst_cut_is() -> None:
    assert heard({"refused": "looped"}).kind == "refused"
    assert heard({"layers": 2, "barred": [[[1], "never there"]]}).why == "never there"
    assert heard(cut(1), cut(2, 1e-7)).kind == "exact"
    assert heard(cut(1), cut(2, 1e-5)).kind == "wrong"
    dead = heard(cut(1))
    dead.crashes["2"] = "GGML_ASSERT"
    assert (dead.kind, dead.done) == ("crashed", [(1,), (2,)])


def test_deep_fixture_that_cannot_be_made_counts_for_nothing() -> None:
    unmade = heard({"layers": 6}, deep=True)
    unmade.crashes["whole"] = "no such tensor"
    found = {one.name: one.value for one in verdict.figures([unmade], whole=False)}
    assert (found["deep_unmade"], found["deep_wrong"], found["crashed"]) == (1, 0, 0)


def test_a_whole_run_wants_its_fixtures() -> None:
    found = verdict.figures([heard(cut(1))], whole=True)
    assert [one.name for one in found if not one.holds] == ["exact"]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_differ(wrong: float) -> None:
    right, found = np.ones(3, np.float32), np.array([1, wrong, 1], np.float32)
    assert story.difference([right], [right]) == 0
    for told in ([found], [right, right]):
        assert story.difference(told, [right]) == float("inf")
    assert story.difference([found], [found]) == float("inf")


def test_page_tells_exact_limited_and_refused() -> None:
    limited = heard({"layers": 3, "barred": [[[2], "shares its keys"]]}, cut(1), fixture="some")
    page = table.page(
        [
            heard({"layers": 2}, cut(1), fixture="free"),
            heard({"layers": 6}, cut(1), cut(2), fixture="free", deep=True),
            limited,
            heard({"refused": "it loops"}, fixture="never"),
        ]
    )
    assert "Of 3 fixtures: 2 exact, 1 refused." in page
    assert "| free | 2 | inject | 1 | exact, 2 cuts |" in page
    assert "| some | 3 | inject | 1 | no such fixture | 2 of 3 | shares its keys |" in page
    assert "| never | it loops |" in page
    assert "## Wrong" not in page


async def test_process_that_dies_is_followed_by_another(tmp_path: Path) -> None:
    """One that dies at its second cut, whenever that is still to be done."""
    program = tmp_path / "child.py"
    program.write_text(
        "import json, os, sys\n"
        "done = json.loads(sys.argv[1])['done']\n"
        "for at in (1, 2, 3):\n"
        "    if [at] in done: continue\n"
        "    print(json.dumps({'begin': [at]}), flush=True)\n"
        "    if at == 2: sys.stderr.write('x.cpp:9: GGML_ASSERT(here)\\nlater\\n'); os.abort()\n"
        "    print(json.dumps({'cut': [at], 'difference': 0, 'why': '', 'entries': [],"
        " 'fillers': 0}), flush=True)\n"
        "print(json.dumps({'end': True}))\n"
    )
    told: list[Any] = []
    wanted = [(tmp_path / "m.gguf", verdict.Verdict("m"))]
    terms = children.Terms(tmp_path, program=program)
    (found,) = await children.certify(wanted, terms, told.append)
    assert told == [found]
    assert (list(found.differences), found.kind) == ([(1,), (3,)], "crashed")
    assert found.crashes == {"2": "x.cpp:9: GGML_ASSERT(here) (status -6)"}
