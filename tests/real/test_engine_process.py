"""The engine with its real process and a real, tiny model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
import trio.testing
from meshnode_llama_cpp.backend import LlamaCpp
from meshnode_llama_cpp.engine import LlamaEngine
from msgspec.structs import replace

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.package import PackageRef
from p2p_mesh.core.records import (
    ChatPrompt,
    Delta,
    DetokenizeQuery,
    EmbedQuery,
    InferenceRequest,
    ModelFile,
    Resume,
    Sampling,
    Text,
    TextPrompt,
    TokenizeQuery,
    TokenPrompt,
    Tokens,
    Vectors,
)
from p2p_mesh.errors import EngineDied, MeshError, ModelError, RequestError
from p2p_mesh.serve.backend import Load
from p2p_mesh.testing.mesh import NoMesh
from p2p_mesh.testing.models import (
    LOOPING,
    Lies,
    Shape,
    write_embedder,
    write_model,
    write_truncated,
)

GREEDY = Sampling(temperature=0)
PROMPT = TokenPrompt(tokens=(1, 20, 30, 40))
HOLDING = (
    "{% set a = 'x' * 1000000 %}{% set b = 'x' * 999999 ~ 'y' %}{{ ([a] * 8000000).count(b) }}"
)
"""Compares 8 TB within one call of list.count."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    return write_model(path, shape=Shape(context=8192), endless=True)


@pytest.fixture
async def engine(tiny: ModelFile) -> AsyncIterator[LlamaEngine]:
    async with start(tiny) as engine:
        yield engine


def start(model: ModelFile, **more: Any) -> AbstractAsyncContextManager[LlamaEngine]:
    return LlamaCpp().open(Load(model, threads=1, **more), NoMesh())


def ask(prompt: ChatPrompt | TextPrompt | TokenPrompt = PROMPT, **more: Any) -> InferenceRequest:
    return InferenceRequest(id=RequestId("r"), model=ModelId("tiny"), prompt=prompt, **more)


async def answer(engine: LlamaEngine, request: InferenceRequest) -> list[Delta]:
    async with engine.generate(request) as deltas:
        return [delta async for delta in deltas]


def text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def tokens(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.tokens]


def lives(pid: int | None) -> bool:
    return bool(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


async def wait_gone(pid: int | None) -> None:
    """No event tells of the end of a process that is not our child."""
    with trio.fail_after(5):
        while lives(pid):
            await trio.sleep(0.01)


async def test_a_chat_is_answered_and_no_process_is_left(tiny: ModelFile) -> None:
    seen: list[float] = []
    async with start(tiny, progress=seen.append) as engine:
        hello = ChatPrompt(messages=({"role": "user", "content": "Hello"},))
        deltas = await answer(engine, ask(hello, sampling=GREEDY, max_tokens=20))
        about = engine.describe()
    assert len(tokens(deltas)) == 20
    assert deltas[-1].finish == "length"
    assert deltas[-1].usage
    assert deltas[-1].usage.completion_tokens == 20
    assert deltas[-1].usage.prompt_tokens > 10
    assert seen[-1] == 1.0
    assert (about.context, about.slots, about.device) == (8192, 4, "cpu")
    assert about.numerics.startswith("llama.cpp")
    assert not psutil.pid_exists(about.pid)


async def test_the_same_seed_gives_the_same_text(engine: LlamaEngine) -> None:
    wild = Sampling(temperature=1.5, top_k=0, min_p=0, seed=5)
    other = Sampling(temperature=1.5, top_k=0, min_p=0, seed=6)
    first = await answer(engine, ask(sampling=wild, max_tokens=30))
    assert await answer(engine, ask(sampling=wild, max_tokens=30)) == first
    assert text(await answer(engine, ask(sampling=other, max_tokens=30))) != text(first)


async def test_an_answer_goes_on_from_its_tokens(tiny: ModelFile) -> None:
    async with start(tiny, deterministic=True) as engine:
        whole = await answer(engine, ask(sampling=GREEDY, max_tokens=100))
        ids = tokens(whole)
        seen = text(whole)[:50]
        broken = Resume(tokens=tuple(ids[:70]), text=len(seen))
        rest = await answer(engine, ask(sampling=GREEDY, max_tokens=100, resume=(broken,)))
    assert tokens(rest) == ids[70:]
    assert seen + text(rest) == text(whole)


async def test_texts_are_tokenized(engine: LlamaEngine) -> None:
    name = ModelId("tiny")
    found = await engine.query(TokenizeQuery(model=name, prompt=TextPrompt(text="the cat")))
    assert isinstance(found, Tokens)
    back = await engine.query(DetokenizeQuery(model=name, tokens=found.tokens[1:]))
    assert back == Text(text=" the cat")
    with pytest.raises(RequestError, match="no vectors"):
        await engine.query(EmbedQuery(model=name, inputs=("the cat",)))


async def test_an_encoder_makes_vectors(tmp_path: Path) -> None:
    async with start(write_embedder(tmp_path / "small.gguf")) as engine:
        assert engine.describe().capabilities == {"embed"}
        found = await engine.query(EmbedQuery(model=ModelId("small"), inputs=("the", "cat", "the")))
        assert isinstance(found, Vectors)
        assert found.vectors[0] == found.vectors[2] != found.vectors[1]
        with pytest.raises(RequestError, match="does not write"):
            await answer(engine, ask())


async def test_the_speed_of_a_draft_is_taken(tiny: ModelFile) -> None:
    async with start(tiny, draft=tiny, deterministic=True) as engine:
        drafted = await answer(engine, ask(sampling=GREEDY, max_tokens=40))
    async with start(tiny, speculation=False, deterministic=True) as engine:
        plain = await answer(engine, ask(sampling=GREEDY, max_tokens=40))
    assert text(drafted) == text(plain)


async def test_a_draft_of_another_vocabulary_is_refused(tiny: ModelFile, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.gguf", shape=Shape(vocabulary=1024))
    with pytest.raises(ModelError, match="another vocabulary"):
        async with start(tiny, draft=other):
            raise AssertionError("it loaded")


async def test_several_at_once_answer_as_alone(tiny: ModelFile) -> None:
    requests = [
        ask(TokenPrompt(tokens=(1, *range(10, 14 + 30 * place))), sampling=GREEDY, max_tokens=40)
        for place in range(7)  # more than there are slots
    ]
    together: dict[int, list[Delta]] = {}
    async with start(tiny, deterministic=True) as engine:

        async def run(place: int, request: InferenceRequest) -> None:
            together[place] = await answer(engine, request)

        async with trio.open_nursery() as nursery:
            for place, request in enumerate(requests):
                nursery.start_soon(run, place, request)
        for place, request in enumerate(requests):
            alone = await answer(engine, request)
            assert tokens(alone) == tokens(together[place])
            assert text(alone) == text(together[place])


async def test_cancelling_frees_the_slot(tiny: ModelFile) -> None:
    async with start(tiny, slots=1) as engine:
        for _ in range(3):
            async with engine.generate(ask(sampling=GREEDY)) as deltas:
                await anext(deltas)
        with trio.fail_after(2):
            assert len(tokens(await answer(engine, ask(sampling=GREEDY, max_tokens=3)))) == 3


async def test_an_answer_may_be_left_in_another_task(engine: LlamaEngine) -> None:
    left = engine.generate(ask(sampling=GREEDY))

    async def begin() -> None:
        assert await anext(await left.__aenter__())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin)
    await left.__aexit__(None, None, None)
    assert await answer(engine, ask(sampling=GREEDY, max_tokens=3))


async def test_a_slow_reader_holds_up_nobody(engine: LlamaEngine) -> None:
    async with engine.generate(ask(sampling=GREEDY)) as slow:
        await anext(slow)
        for _ in range(20):
            assert len(tokens(await answer(engine, ask(sampling=GREEDY, max_tokens=20)))) == 20
        assert (await anext(slow)).tokens


async def test_the_end_of_the_context_is_the_end(tiny: ModelFile) -> None:
    async with start(tiny, context=64, slots=2) as engine:
        deltas = await answer(engine, ask(sampling=GREEDY))
    assert deltas[-1].finish == "length"
    assert deltas[-1].usage
    assert deltas[-1].usage.completion_tokens == 60


async def test_a_prompt_that_is_too_long_is_refused(tiny: ModelFile) -> None:
    async with start(tiny, context=64) as engine:
        with pytest.raises(
            RequestError, match="has 65 tokens, the model's context is 64"
        ) as caught:
            await answer(engine, ask(TokenPrompt(tokens=(5,) * 65)))
        assert caught.value.param == "prompt"
        assert len(tokens(await answer(engine, ask(max_tokens=2, sampling=GREEDY)))) == 2


async def test_a_prompt_of_many_calls_is_read(engine: LlamaEngine) -> None:
    long = TokenPrompt(tokens=tuple(5 + place % 400 for place in range(3000)))
    deltas = await answer(engine, ask(long, sampling=GREEDY, max_tokens=2))
    assert deltas[-1].usage
    assert deltas[-1].usage.prompt_tokens == 3000


async def test_a_request_that_cannot_be_encoded_is_refused(engine: LlamaEngine) -> None:
    with pytest.raises(RequestError, match="cannot be passed on"):
        await answer(engine, ask(TextPrompt(text="\ud800")))


async def test_a_killed_engine_ends_every_answer(tiny: ModelFile) -> None:
    async with start(tiny) as engine:
        pid = engine.describe().pid
        assert pid
        async with engine.generate(ask(sampling=GREEDY)) as one, engine.generate(ask()) as two:
            await anext(one)
            os.kill(pid, signal.SIGKILL)
            for deltas in (one, two):
                with pytest.raises(EngineDied, match="tiny was killed by SIGKILL"):
                    async for _ in deltas:
                        pass
        assert "SIGKILL" in await engine.wait_ended()
        with pytest.raises(EngineDied, match="SIGKILL"):
            await answer(engine, ask())
        await engine.close()


async def test_a_stopped_engine_is_killed_in_time(tiny: ModelFile) -> None:
    with trio.fail_after(3):
        async with start(tiny) as engine:
            pid = engine.describe().pid
            assert pid
            os.kill(pid, signal.SIGSTOP)
    await wait_gone(pid)


async def test_close_ends_answers_that_others_read(tiny: ModelFile) -> None:
    async with trio.open_nursery() as nursery:
        async with start(tiny, slots=1) as engine:

            async def read() -> None:
                with pytest.raises(EngineDied, match="was closed"):
                    await answer(engine, ask(sampling=GREEDY))

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
        assert await engine.wait_ended() == "the engine of tiny was closed"


async def test_cancelled_while_loading_leaves_no_process(tiny: ModelFile) -> None:
    before = {child.pid for child in psutil.Process().children()}
    with trio.move_on_after(0.1) as scope:
        async with start(tiny):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert {child.pid for child in psutil.Process().children()} <= before


async def test_an_error_of_the_body_comes_out_as_it_is(tiny: ModelFile) -> None:
    with pytest.raises(KeyError):
        async with start(tiny):
            raise KeyError


async def test_the_engine_goes_when_its_node_is_killed(tiny: ModelFile) -> None:
    node = """
import sys, trio
from pathlib import Path
from meshnode_llama_cpp.backend import LlamaCpp
from p2p_mesh.serve.backend import Load
from p2p_mesh.testing.models import Shape, describe_model

async def main(path):
    load = Load(describe_model(Path(path), Shape(context=8192)), threads=1)
    async with LlamaCpp().open(load, None) as engine:
        print(engine.describe().pid, flush=True)
        await trio.sleep_forever()

trio.run(main, sys.argv[1])
"""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", node, tiny.path], stdout=subprocess.PIPE
    )
    assert process.stdout
    async with process.stdout:
        pid = int(await process.stdout.receive_some())
        assert psutil.pid_exists(pid)
        process.kill()
        await process.wait()
    await wait_gone(pid)


async def refuse(model: ModelFile) -> MeshError:
    with trio.fail_after(15), pytest.raises(MeshError) as caught:
        async with start(model):
            raise AssertionError("it loaded")
    return caught.value


async def test_weights_that_cannot_be_computed_with(tmp_path: Path) -> None:
    error = await refuse(write_model(tmp_path / "wide.gguf", wide=True))
    assert isinstance(error, EngineDied)
    assert "the engine of wide was killed by SIGABRT" in str(error)
    assert "fatal error" in str(error)


@pytest.mark.parametrize(
    ("lies", "kind", "says"),
    [
        (Lies(heads=0), ModelError, "expected     64,      0"),
        (Lies(layers=10**9), EngineDied, "was killed by SIGABRT; its last words"),
        (Lies(layers=7), ModelError, "'blk.2.attn_norm.weight' not found"),
    ],
)
async def test_impossible_counts(
    tmp_path: Path, lies: Lies, kind: type[MeshError], says: str
) -> None:
    error = await refuse(write_model(tmp_path / "liar.gguf", lies=lies))
    assert type(error) is kind
    assert says in str(error)


async def test_truncated_weights(tmp_path: Path) -> None:
    error = await refuse(write_truncated(tmp_path / "cut.gguf"))
    assert isinstance(error, ModelError)
    assert "not within the file bounds" in str(error)


async def test_a_looping_template_fails_the_load(tmp_path: Path) -> None:
    error = await refuse(write_model(tmp_path / "loop.gguf", template=LOOPING))
    assert isinstance(error, ModelError)
    assert str(error) == "the chat template of loop did not end within 1 s"


async def test_a_template_that_holds_the_interpreter_fails_the_load(tmp_path: Path) -> None:
    error = await refuse(write_model(tmp_path / "held.gguf", template=HOLDING))
    assert str(error) == "the chat template of held held its engine for too long"


async def test_a_model_without_template_says_what_it_uses(tmp_path: Path) -> None:
    async with start(write_model(tmp_path / "plain.gguf", template=None)) as engine:
        assert engine.describe().notes == ("plain has no chat template; ChatML is used",)


def test_the_plugin_is_light_to_import() -> None:
    code = (
        "import sys, meshnode_llama_cpp as m; "
        "print(m.meshnode_backends()[0].name, {'llama_cpp', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "llama_cpp set()\n"


async def test_cancelled_engine_ends_by_itself_and_at_once(tiny: ModelFile) -> None:
    async with trio.open_nursery() as nursery:
        engine = await nursery.start(_hold, tiny)
        process = engine._process
        begun = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - begun < 0.5
    assert process.returncode == 0  # it was hung up on, not killed


async def _hold(model: ModelFile, task_status: trio.TaskStatus[LlamaEngine]) -> None:
    async with start(model) as engine:
        task_status.started(engine)
        await trio.sleep_forever()


class Packaged(NoMesh):
    """A mesh of one that has a model as a package."""

    def __init__(self, file: Path) -> None:
        self._file = file

    async def package(self, wanted: ModelFile | PackageRef) -> Any:
        return self

    async def whole(self, progress: Callable[[float], None]) -> Path:
        progress(1.0)
        return self._file


async def test_a_model_that_is_a_folder_is_loaded_as_one_file(
    tiny: ModelFile, tmp_path: Path
) -> None:
    folder = replace(tiny, path=str(tmp_path))
    async with LlamaCpp().open(Load(folder, threads=1), Packaged(Path(tiny.path))) as engine:
        assert "generate" in engine.describe().capabilities
