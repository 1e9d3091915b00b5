from __future__ import annotations

from pathlib import Path

import pytest
from meshnode_llama_cpp.model import Model

from p2p_mesh.errors import ModelError
from p2p_mesh.testing.models import (
    BOS,
    CHATML,
    EOS,
    IM_END,
    IM_START,
    WINDOW,
    Kind,
    write_model,
    write_truncated,
)


def load(path: Path, seen: list[float] | None = None) -> Model:
    report = (lambda _: None) if seen is None else seen.append
    return Model(str(path), name=path.stem, progress=report)


def test_text_becomes_tokens_and_text_again(model: Model) -> None:
    tokens = model.tokenize("the cat \u00e9 \U0001f408")
    assert tokens[0] == BOS
    assert b"".join(map(model.piece, tokens)).decode() == " the cat \u00e9 \U0001f408"


def test_special_tokens_are_recognised(model: Model) -> None:
    assert model.tokenize("<|im_start|><|im_end|>") == [BOS, IM_START, IM_END]


def test_control_tokens_say_nothing_in_an_answer(model: Model) -> None:
    assert model.piece(IM_START) == b""
    assert model.written(IM_START) == "<|im_start|>"
    assert model.written(-1) == ""


def test_what_ends_an_answer(model: Model) -> None:
    assert [model.ends(token) for token in (BOS, EOS, IM_START, IM_END)] == [
        False,
        True,
        False,
        True,
    ]


def test_the_template_is_the_files(model: Model) -> None:
    assert model.template == CHATML
    assert model.adds_begin


def test_long_text_is_tokenized_whole(model: Model) -> None:
    assert len(model.tokenize("\u4e2d" * 1000)) > 3000


def test_progress_goes_up_to_the_end(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny.gguf")
    seen: list[float] = []
    load(tmp_path / "tiny.gguf", seen)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_a_truncated_file_is_refused_with_llama_cpps_words(tmp_path: Path) -> None:
    write_truncated(tmp_path / "cut.gguf")
    with pytest.raises(ModelError, match=r"does not load cut: .*not within the file bounds"):
        load(tmp_path / "cut.gguf")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        load(tmp_path / "none.gguf")


def test_text_without_what_goes_around_it(model: Model) -> None:
    assert BOS not in model.tokenize("the cat", around=False)
    assert IM_START not in model.tokenize("<|im_start|>", around=False, special=False)


def test_a_llama_can_be_cut_back_and_has_no_window(model: Model) -> None:
    assert not model.is_recurrent
    assert model.window == 0
    assert model.gap is None
    model.check_writes()


@pytest.mark.parametrize(("kind", "recurrent", "window"), [
    ("sliding", False, WINDOW), ("recurrent", True, 0), ("hybrid", True, 0),
])  # fmt: skip
def test_how_a_model_remembers(tmp_path: Path, kind: Kind, recurrent: bool, window: int) -> None:
    write_model(tmp_path / "kind.gguf", kind=kind)
    found = load(tmp_path / "kind.gguf")
    assert (found.is_recurrent, found.window) == (recurrent, window)
