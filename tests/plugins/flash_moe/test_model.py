from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from meshnode_flash_moe.model import FlashContext, FlashModel, run_layers
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.model import Model
from numpy.typing import NDArray

from p2p_mesh.core.gguf import Header, Value
from p2p_mesh.errors import ModelError
from p2p_mesh.testing.models import write_model

PLAN = Plan(context=128, slots=2, threads=1, rows=16)
TOKENS = [1, *range(20, 40)]


def write(context: Context, rows: int) -> NDArray[np.float32]:
    """The logits behind a prompt and after each of some tokens."""
    found, position = [], 0
    for start in range(0, len(TOKENS), rows):
        part = TOKENS[start : start + rows]
        context.rows.clear()
        row = context.rows.add(0, position, part, outputs=1)
        context.decode()
        found.append(context.logits(row).copy())
        position += len(part)
    context.clear()
    return np.stack(found)


def read(context: Context, rows: int) -> NDArray[np.float32]:
    """The logits behind a long prompt, of which no call but the last has answers."""
    prompt = [1, *(5 + 7 * number % 400 for number in range(100))]
    for start in range(0, len(prompt), rows):
        part = prompt[start : start + rows]
        is_last = start + rows >= len(prompt)
        context.rows.clear()
        row = context.rows.add(0, start, part, outputs=int(is_last))
        context.decode()
    found = context.logits(row).copy()
    context.clear()
    return found


@pytest.mark.parametrize("kind", ["mixture", "grouped"])
def test_the_answer_is_that_of_the_whole_model(kind: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(kind)
    whole = Context(Model(str(path), name="m", progress=lambda _: None), PLAN)
    shares: list[float] = []
    model = FlashModel([path], name="m", progress=shares.append)
    assert shares[-1] == 1.0
    layer = model.layout.layers[0].size
    context = FlashContext(model, PLAN, room=8 * layer)
    for rows in (1, 2):
        assert np.array_equal(write(context, rows), write(whole, rows))
    assert 0 < context.experts.spent.found < context.experts.spent.chosen
    context = FlashContext(model, PLAN, room=model.layout.expert_bytes)
    assert list(context.fill())[-1] == 1.0
    assert np.array_equal(write(context, 16), write(whole, 16))
    assert context.experts.spent.rows > len(TOKENS)


@pytest.mark.parametrize("kind", ["mixture", "grouped"])
def test_a_prompt_of_several_calls_is_that_of_the_whole_model(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """Most of its calls answer no row, and read ahead for the next layer."""
    path: Path = request.getfixturevalue(kind)
    whole = Context(Model(str(path), name="m", progress=lambda _: None), PLAN)
    model = FlashModel([path], name="m", progress=lambda _: None)
    context = FlashContext(model, PLAN, room=20 * model.layout.layers[0].size)
    for rows in (3, 8, 16):
        assert np.array_equal(read(context, rows), read(whole, rows))


def test_a_model_in_several_files_is_one_model(mixture: Path, tmp_path: Path) -> None:
    paths = split(mixture, tmp_path)
    whole = Context(Model(str(mixture), name="m", progress=lambda _: None), PLAN)
    model = FlashModel(paths, name="m", progress=lambda _: None)
    context = FlashContext(model, PLAN, room=8 * model.layout.layers[0].size)
    assert np.array_equal(write(context, 1), write(whole, 1))


def test_a_model_without_experts_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "dense.gguf")
    with pytest.raises(ModelError, match="m is no mixture of experts"):
        FlashModel([tmp_path / "dense.gguf"], name="m", progress=lambda _: None)


def split(path: Path, folder: Path) -> list[Path]:
    """The model in two files, as llama.cpp's own tool splits it: half of the tensors in each."""
    reader = gguf.GGUFReader(path)
    half = len(reader.tensors) // 2
    found = []
    for number, tensors in enumerate((reader.tensors[:half], reader.tensors[half:])):
        target = folder / f"m-0000{number + 1}-of-00002.gguf"
        writer = gguf.GGUFWriter(target, "qwen3moe")
        for field in reader.fields.values() if number == 0 else ():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                kind = field.types[0]
                sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(field.name, field.contents(), kind, sub)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for one in tensors:
            writer.add_tensor(one.name, one.data, raw_dtype=one.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        found.append(target)
    return found


def test_layers_that_only_guess_ahead_are_left_out() -> None:
    said: dict[str, Value] = {"general.architecture": "glm4moe", "glm4moe.block_count": 47}
    assert run_layers(Header(said, ())) == 47
    assert run_layers(Header({**said, "glm4moe.nextn_predict_layers": 1}, ())) == 46
