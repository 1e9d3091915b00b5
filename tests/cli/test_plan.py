"""`meshnode plan`."""

import json
from pathlib import Path
from typing import Any

import pytest

from p2p_mesh.cli.main import execute
from p2p_mesh.core.stages import read_topology
from p2p_mesh.testing.models import write_moe
from tests.cli.conftest import Port, refusal

PLAN = {
    "version": 1, "model": "m", "manifest_sha256": "a" * 64,
    "stages": [{"node": "me", "layer_start": 0, "layer_end": 4}],
}  # fmt: skip
WHOLE = {
    "fits": True, "reason": "", "backend": "llama_cpp", "context": 512, "slots": 4,
    "memory_bytes": 2 * 10**9, "tokens_per_second": 20.0,
}  # fmt: skip
STAGES = {"fits": True, "reason": "", "words": ["m: 4 layers in 2 stages"], "plan": PLAN}
NO_STAGES = {
    "fits": False, "reason": "it is too large.", "advice": "Add nodes.",
    "missing_bytes": 5 * 10**9,
    "excluded": [{"node": "x", "name": "bob", "reason": "it is a client"}],
}  # fmt: skip
NO_EXPERTS = {
    "fits": False, "reason": "m is no mixture of experts.", "advice": "", "final": True,
}  # fmt: skip
FLASH = {
    **WHOLE, "backend": "flash_moe", "cache_share": 0.25, "hit_rate": 0.4,
    "bytes_per_token": 30 * 10**6, "disk_bandwidth": 1.5e9,
}  # fmt: skip
SHARDS = {
    **WHOLE, "backend": "expert_shards", "mass": 0.9, "experts": 128, "experts_kept": 64,
    "nodes": [
        {"node": "a", "name": "alice", "mass": 0.91, "size_bytes": 9 * 10**9},
        {"node": "b", "name": "", "mass": 0.9, "size_bytes": 9 * 10**9},
    ],
}  # fmt: skip


def found(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "model": "m", "size_bytes": 10**9, "choice": "whole", "waits": False, "why": "it fits",
        "whole": WHOLE, "stages": STAGES, "shards": NO_EXPERTS, "flash": NO_EXPERTS,
        "served_by": ["carol"],
    }  # fmt: skip
    return values | changes


@pytest.fixture
def planning(port: Port) -> Port:
    port.answers["/api/plan"] = [found()]
    return port


def test_all_four_ways_are_compared(planning: Port, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["plan", "m", "--data-dir", planning.directory]) == 0
    assert planning.asked == [("/api/plan", {"model": "m"})]
    assert capsys.readouterr().out.splitlines() == [
        "m (1.00 GB) is served whole",
        "  why: it fits",
        "",
        "Whole, on this node: yes, by llama_cpp: a context of 512 tokens, 4 at a time, 2.00 GB, "
        "about 20.0 tokens/s for one answer",
        "  served already by carol",
        "",
        "In stages:",
        "  m: 4 layers in 2 stages",
        "",
        "By expert shards: no. m is no mixture of experts.",
        "",
        "Flash, with experts on the disk of this node: no. m is no mixture of experts.",
    ]


def test_what_shards_and_flash_are_made_of_is_told(
    planning: Port, capsys: pytest.CaptureFixture[str]
) -> None:
    planning.answers["/api/plan"] = [found(choice="flash", flash=FLASH, shards=SHARDS)]
    assert execute(["plan", "m", "--flash", "--data-dir", planning.directory]) == 0
    assert planning.asked == [("/api/plan", {"model": "m", "flash": True})]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "m (1.00 GB) is served flash, with its experts on the disk"
    assert said[-8:] == [
        "By expert shards: yes, by expert_shards: a context of 512 tokens, 4 at a time, 2.00 GB, "
        "about 20.0 tokens/s for one answer",
        "  each node has 64 of the 128 experts of a layer",
        "  alice: 0.91 of the routing, 9.00 GB",
        "  b: 0.90 of the routing, 9.00 GB",
        "",
        "Flash, with experts on the disk of this node: yes, by flash_moe: a context of 512 tokens, "
        "4 at a time, 2.00 GB, about 20.0 tokens/s for one answer",
        "  25% of its experts fit into memory; of those that a token needs, 40% at least are "
        "expected there",
        "  read from the disk for a token: 30.0 MB at most; the disk gives 1500 MB/s",
    ]


def test_what_is_not_known_of_flash_is_left_out(
    planning: Port, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = {**WHOLE, "tokens_per_second": None, "bytes_per_token": 10**6}
    many = [SHARDS["nodes"][0]] * 25  # type: ignore[index]
    planning.answers["/api/plan"] = [
        found(choice="shards", flash=unknown, shards={**SHARDS, "nodes": many})
    ]
    assert execute(["plan", "m", "--shards", "--data-dir", planning.directory]) == 0
    said = capsys.readouterr().out
    assert "is served by expert shards" in said
    assert "1.0 MB at most; the disk has not been measured" in said
    assert "and 5 more nodes" in said


@pytest.mark.parametrize(
    "flags", [["--split", "--flash"], ["--flash", "--shards"], ["--shards", "--stages", "x"]]
)
def test_two_ways_at_a_time_are_something_to_mend(
    planning: Port, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["plan", "m", *flags, "--data-dir", planning.directory]) == 2
    assert "are two ways to serve a model" in capsys.readouterr().err
    assert planning.asked == []


def test_alone_a_mixture_of_experts_is_planned_flash_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "moe.gguf"
    write_moe(path)
    assert execute(["plan", str(path), "--data-dir", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "whole, on this machine: yes, by llama_cpp" in said
    assert "flash, on this machine: yes, by flash_moe" in said
    assert "of its experts fit into memory" in said


def test_what_is_missing_is_said(planning: Port, capsys: pytest.CaptureFixture[str]) -> None:
    planning.answers["/api/plan"] = [
        found(
            choice=None, waits=True, why="nothing can begin now", served_by=[],
            whole={"fits": False, "reason": "No."}, stages=NO_STAGES,
        )
    ]  # fmt: skip
    assert execute(["plan", "m", "--data-dir", planning.directory]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "m (1.00 GB) waits for nodes",
        "  why: nothing can begin now",
        "",
        "Whole, on this node: no. No.",
        "",
        "In stages: no. it is too large. Add nodes.",
        "  missing: 5.00 GB",
        "  left out: bob: it is a client",
        "",
        "By expert shards: no. m is no mixture of experts.",
        "",
        "Flash, with experts on the disk of this node: no. m is no mixture of experts.",
    ]


def test_every_option_is_passed_on(
    planning: Port, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.gguf").write_text("x")
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    arguments = ["--split", "--ctx", "64", "--parallel", "2", "--max-rtt", "20", "--stages",
                 "plan.json"]  # fmt: skip
    assert execute(["plan", "m.gguf", *arguments, "--data-dir", planning.directory]) == 0
    assert planning.asked == [
        ("/api/plan", {
            "model": str(tmp_path / "m.gguf"), "split": True, "ctx": 64, "parallel": 2,
            "max_rtt": 20.0, "stages": PLAN,
        })
    ]  # fmt: skip


def test_plan_is_saved_for_run(
    planning: Port, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    arguments = ["plan", "m", "--save", str(path), "--json", "--data-dir", planning.directory]
    assert execute(arguments) == 0
    assert read_topology(path.read_bytes()).stages[0].layer_end == 4
    said = capsys.readouterr()
    assert json.loads(said.out)["choice"] == "whole"
    assert "run --stages" in said.err


def test_what_cannot_be_saved_is_said(
    planning: Port, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--save", str(tmp_path), "--data-dir", planning.directory]
    assert execute(["plan", "m", *arguments]) == 2
    assert "cannot be written" in capsys.readouterr().err
    planning.answers["/api/plan"] = [found(stages=NO_STAGES)]
    assert execute(["plan", "m", *arguments]) == 1
    assert "no plan to save: it is too large" in capsys.readouterr().err


def test_bad_plan_file_is_something_to_mend(
    planning: Port, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    arguments = ["plan", "m", "--stages", str(bad), "--data-dir", planning.directory]
    assert execute(arguments) == 2
    assert f"{bad} is no plan: it has no model" in capsys.readouterr().err
    assert planning.asked == []


def test_unknown_model_is_something_to_mend(
    planning: Port, capsys: pytest.CaptureFixture[str]
) -> None:
    planning.answers["/api/plan"] = [refusal("there is no model x", "bad_model")]
    assert execute(["plan", "x", "--data-dir", planning.directory]) == 2


def test_without_a_node_it_says_what_it_can_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["plan", "meshnode-demo", "--data-dir", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("meshnode-demo (")
    assert "whole, on this machine: yes, by llama_cpp" in said.out
    assert "no node runs on" in said.err
    assert "`meshnode run` in another terminal" in said.err
    assert execute(["plan", "meshnode-demo", "--json", "--data-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().out == ""


def test_what_no_node_can_mend_does_not_wait(
    planning: Port, capsys: pytest.CaptureFixture[str]
) -> None:
    hopeless = found(
        choice=None, whole={"fits": False, "reason": "No."}, stages=NO_STAGES | {"final": True}
    )
    planning.answers["/api/plan"] = [hopeless, hopeless]
    assert execute(["plan", "m", "--data-dir", planning.directory]) == 1
    assert capsys.readouterr().out.startswith("m (1.00 GB) cannot be served\n")
    assert execute(["plan", "m", "--json", "--data-dir", planning.directory]) == 1
    assert json.loads(capsys.readouterr().out)["stages"]["final"]


def test_file_is_written_over_only_when_told(
    planning: Port, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    path.write_text("mine")
    arguments = ["plan", "m", "--save", str(path), "--data-dir", planning.directory]
    assert execute(arguments) == 2
    assert "--force writes over it" in capsys.readouterr().err
    assert (path.read_text(), planning.asked) == ("mine", [])
    assert execute([*arguments, "--force"]) == 0
    assert read_topology(path.read_bytes()).model == "m"
