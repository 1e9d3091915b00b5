from __future__ import annotations

import os
from pathlib import Path

import gguf
import pytest
from meshnode_expert_shards.ahead import Ahead

from p2p_mesh.errors import ModelError
from p2p_mesh.testing.models import write_model, write_moe


def test_the_ranges_are_those_of_the_experts(tmp_path: Path) -> None:
    path = tmp_path / "moe.gguf"
    write_moe(path)
    ahead, tensors = Ahead(path), {one.name: one for one in gguf.GGUFReader(path).tensors}
    found = [os.pread(file, size, offset) for file, offset, size in ahead.ranges(1, [2, 5])]
    wanted = [
        tensors[f"blk.1.ffn_{name}_exps.weight"].data[expert].tobytes()
        for name in ("gate", "up", "down")
        for expert in (2, 5)
    ]
    assert sorted(found) == sorted(wanted)
    ahead.read(1, [2, 5])


def test_a_layer_without_experts_has_none_to_read(tmp_path: Path) -> None:
    write_moe(tmp_path / "moe.gguf", kind="grouped")
    assert list(Ahead(tmp_path / "moe.gguf").ranges(0, [1])) == []
    write_model(tmp_path / "dense.gguf")
    assert list(Ahead(tmp_path / "dense.gguf").ranges(0, [1])) == []


def test_each_file_of_a_split_model_has_its_own(tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    write_moe(whole)
    for number in (1, 2):  # each has all of it: the later one counts
        os.link(whole, tmp_path / f"moe-0000{number}-of-00002.gguf")
    ahead = Ahead(tmp_path / "moe-00001-of-00002.gguf")
    assert len({file for file, _, _ in ahead.ranges(0, [0])}) == 1
    (tmp_path / "moe-00002-of-00002.gguf").write_bytes(b"nothing")
    with pytest.raises(ModelError):
        Ahead(tmp_path / "moe-00001-of-00002.gguf")
