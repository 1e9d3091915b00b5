from __future__ import annotations

from pathlib import Path

import pytest
from meshnode_flash_moe import told
from meshnode_flash_moe.served import FlashWriter, files
from meshnode_llama_cpp import frames
from meshnode_llama_cpp.served import Served, open_model

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import InferenceRequest, Sampling, TokenPrompt
from p2p_mesh.errors import ModelError

ENOUGH = 8 << 30
LAYER = 300_000
"""Bytes of the experts of a layer of the test's model, at least."""


def command(path: Path) -> frames.Open:
    return frames.Open("m", str(path), context=64, slots=2, threads=1, speculation=False)


def opened(
    path: Path, *, memory: int = ENOUGH, experts: int = LAYER, slots: int = 2
) -> FlashWriter:
    shares: list[float] = []
    writer = FlashWriter(told.Open(command(path), memory, experts), shares.append)
    assert shares == sorted(shares)
    return writer


def answer(served: Served) -> list[int]:
    prompt = TokenPrompt(tokens=(1, *range(20, 40)))
    greedy = Sampling(temperature=0)
    served.ask(1, InferenceRequest(
        id=RequestId("r"), model=ModelId("m"), prompt=prompt, sampling=greedy, max_tokens=12
    ))  # fmt: skip
    tokens: list[int] = []
    while not served.idle:
        for outcome in served.step():
            assert isinstance(outcome, frames.Answer)
            tokens += outcome.delta.tokens
    return tokens


def test_the_answer_is_that_of_the_whole_model(mixture: Path) -> None:
    whole = open_model(command(mixture), [], lambda _: None)
    assert answer(opened(mixture)) == answer(whole)


def test_it_tells_what_the_disk_costs_now_and_then(
    mixture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = opened(mixture)
    answer(writer)
    assert writer.tell() is None
    monkeypatch.setattr(told, "EVERY", 0.0)
    found = writer.tell()
    assert found is not None
    assert found.tokens > 30
    assert found.hit_rate == 1.0
    assert found.disk_bytes_per_token == 0.0
    assert found.expert_bytes_cached == found.expert_bytes
    assert writer.tell() is None  # nothing was computed since


def test_time_in_which_nothing_is_asked_does_not_count(
    mixture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = opened(mixture)
    answer(writer)
    writer._since -= 1000.0
    writer._experts.spent.seconds += writer._experts.spent.all
    found = writer.tell()
    assert found is not None
    assert found.disk_wait > 0.5


def test_it_does_not_claim_to_compute_as_a_whole_model_does(mixture: Path) -> None:
    assert opened(mixture).numerics("cpu").endswith(" flash")


def test_experts_that_have_no_room_are_refused_in_words(mixture: Path) -> None:
    with pytest.raises(ModelError, match=r"MiB are allowed. Give it more memory"):
        opened(mixture, memory=1 << 20)
    with pytest.raises(ModelError, match=r"2 answers at a time go through 8. Give it more memory"):
        opened(mixture, experts=LAYER // 16)


def test_a_small_room_makes_small_calls(mixture: Path) -> None:
    size = opened(mixture)._flash.layout.layers[0].size
    assert opened(mixture, experts=8 * size)._limits.rows == 2
    assert opened(mixture, experts=16 * size)._limits.rows == 512


def test_the_files_of_a_model() -> None:
    assert files(Path("/m/one.gguf")) == [Path("/m/one.gguf")]
    assert [one.name for one in files(Path("/m/a-00001-of-00003.gguf"))] == [
        "a-00001-of-00003.gguf", "a-00002-of-00003.gguf", "a-00003-of-00003.gguf",
    ]  # fmt: skip
