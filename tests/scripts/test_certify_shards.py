"""The certification of expert shards finds what is wrong: an expert that is changed by a
thousandth, a mask that does nothing, a process that dies.
"""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts/benches"))

# Scripts are programs, not a package: mypy does not look there, and the path comes first.
from certification import (  # type: ignore[import-not-found]
    fixtures,
    masking,
    shards,
    shardtable,
    shardverdict,
    widening,
)
from meshnode_llama_cpp.library import start

from p2p_mesh.core.gguf import read_header
from p2p_mesh.testing.models import Router, Shape, write_model, write_moe

SHAPE = Shape(layers=2)


def fixture(folder: Path, kind: Router = "softmax") -> Path:
    """A model with two experts in F32, as llama.cpp's fixtures are."""
    small, path = folder / "small.gguf", folder / f"{kind}.gguf"
    write_moe(small, experts=4 if kind == "grouped" else 2, used=2, kind=kind, shape=SHAPE)
    reader = gguf.GGUFReader(small)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def certified(path: Path, *, grouped: bool = False, disturb: float = 0.0) -> Any:
    start()
    found = shardverdict.ShardVerdict(path.stem, grouped)
    for line in shards.work(shards.Job(str(path), str(path.parent), grouped, disturb)):
        found.hear(json.loads(json.dumps(line)))
    return found


def missed(*verdicts: Any, whole: bool = False) -> set[str]:
    return {one.name for one in shardverdict.figures(verdicts, whole=whole) if not one.holds}


@pytest.mark.parametrize("grouped", [False, True])
def test_shards_are_exact(tmp_path: Path, grouped: bool) -> None:
    kind: Router = "grouped" if grouped else "softmax"
    found = certified(fixture(tmp_path, kind), grouped=grouped)
    assert (found.kind, found.why) == ("exact", "")
    assert found.differences == {"all": 0.0, "half": 0.0}
    assert (found.experts, found.kept) == (32, 16)
    assert missed(found) == set()
    assert {one.name for one in tmp_path.iterdir()} == {"small.gguf", f"{kind}.gguf"}


def test_expert_that_is_changed_by_a_thousandth_is_noticed(tmp_path: Path) -> None:
    found = certified(fixture(tmp_path), disturb=0.001)
    assert found.kind == "wrong"
    assert set(found.failures) == {"all", "half"}
    assert missed(found) == {"shards_wrong"}


def test_mask_that_does_nothing_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masking.MaskedContext, "_mask", lambda *_: None)
    found = certified(fixture(tmp_path))
    assert found.failures == {"half": "the mask changes nothing"}


def test_model_without_experts_is_no_fixture(tmp_path: Path) -> None:
    write_model(tmp_path / "dense.gguf")
    assert not fixtures.has_experts(tmp_path / "dense.gguf")
    assert fixtures.has_experts(fixture(tmp_path))


def test_refusal_is_told_in_words(tmp_path: Path) -> None:
    path = fixture(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"ffn_up_exps", b"ffn_xx_exps"))
    found = certified(path)
    assert found.kind == "refused"
    assert "ffn_xx_exps" in found.why


def test_wide_fixture_is_the_same_in_another_order(tmp_path: Path) -> None:
    path, one, other = fixture(tmp_path), tmp_path / "one.gguf", tmp_path / "other.gguf"
    order = [31, *range(31)]
    widening.widen(path, one, widening.PLAIN)
    widening.widen(path, other, widening.PLAIN, {0: order, 1: order})
    name = "blk.0.ffn_up_exps.weight"
    first, second = (
        next(tensor.data for tensor in gguf.GGUFReader(file).tensors if tensor.name == name)
        for file in (one, other)
    )
    assert len(first) == 32
    assert np.array_equal(first[order], second)
    assert len({each.tobytes() for each in first}) == 32
    header = read_header(one.read_bytes(), one.stat().st_size)
    assert (header.number("expert_count"), header.number("expert_used_count")) == (32, 4)


@pytest.mark.parametrize("width", [widening.PLAIN, widening.GROUPED, widening.GROUPED_SOFTMAX])
def test_shard_keeps_as_many_of_each_group_and_stands_first_in_it(width: Any) -> None:
    kept, groups = width.choose(seed=3), max(1, width.groups)
    each = width.experts // groups
    assert kept == sorted(set(kept))
    assert {sum(one // each == group for one in kept) for group in range(groups)} == {
        width.kept // groups
    }
    order = width.order(kept)
    assert sorted(order) == list(range(width.experts))
    assert [one // each for one in order] == sorted(one // each for one in order)
    assert [order[at] in kept for at in range(each)] == sorted(
        (order[at] in kept for at in range(each)), reverse=True
    )


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("blk.3.ffn_up_exps.weight", 3),
        ("blk.0.ffn_gate_inp.weight", 0),
        ("blk.0.exp_probs_b.bias", 0),
        ("blk.0.ffn_gate_inp_shexp.weight", None),
        ("blk.0.ffn_norm_exps.weight", None),
        ("blk.0.ffn_up.weight", None),
    ],
)
def test_what_has_a_part_for_each_expert(name: str, layer: int | None) -> None:
    assert widening.by_expert(name) == layer


def heard(*lines: dict[str, Any], name: str = "m", grouped: bool = False) -> Any:
    found = shardverdict.ShardVerdict(name, grouped)
    for line in lines:
        found.hear(line)
    return found


def proof(what: str, difference: float = 0.0) -> dict[str, Any]:
    return {"proof": what, "difference": difference, "why": ""}


def test_fixture_is_exact_only_to_the_last_bit() -> None:
    assert heard(proof("all"), proof("half")).kind == "exact"
    assert heard(proof("all"), proof("half", 1e-9)).kind == "wrong"
    assert heard({"refused": "tables"}).kind == "refused"
    dead = heard(proof("all"))
    dead.crashes["half"] = "GGML_ASSERT"
    assert (dead.kind, missed(dead)) == ("crashed", {"shards_crashed"})


def test_groups_that_llama_cpp_does_not_run_count_for_nothing() -> None:
    unmade = heard(grouped=True)
    unmade.crashes["whole"] = "GGML_ASSERT"
    assert missed(unmade) == set()
    unmade.crashes = {"half": "GGML_ASSERT"}
    assert missed(unmade) == {"grouped_wrong"}


def test_a_whole_run_wants_its_fixtures() -> None:
    assert missed(heard(proof("all"), proof("half")), whole=True) == {"shards_exact"}


def test_page_keeps_what_it_tells_of_stages() -> None:
    verdicts = [
        heard({"in_place": True}, proof("all"), proof("half"), name="free"),
        heard(proof("all"), proof("half"), name="free", grouped=True),
        heard({"refused": "it looks them up"}, name="never"),
    ]
    told = shardtable.shard_page(verdicts)
    assert "Of 2 fixtures with experts: 1 exact, 1 refused." in told
    assert "| free | yes | exact |" in told
    assert "| never | it looks them up |" in told
    assert "wrong" not in told
    page = "# Stages\n\nrows\n\n" + told
    assert shardtable.stages_of(page) == "# Stages\n\nrows\n"
    assert shardtable.shards_of(page) == told
    assert shardtable.shards_of("# Stages\n") == ""
