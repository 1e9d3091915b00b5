"""What the tests with real processes share: models, and two nodes that no test changes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2p_mesh.serve.store import DEFAULT_MODEL
from p2p_mesh.testing.cluster import NodeProcess
from p2p_mesh.testing.models import Shape, write_embedder, write_model, write_reranker
from tests.real.shared import facts, keep_apart, running

# The calls of Hermes and Qwen: a family that is told by its template.
HERMES = (
    "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}{{ tool | tojson }}"
    "{% endfor %}</tools>\nFor each function call return a json object with function name and "
    "arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": '
    "<args-json-object>}\n</tool_call><|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EFFORT = "{{ messages[0].content }} {{ reasoning_effort }} {{ enable_thinking }} {{ tone }}"


@pytest.fixture(scope="session")
def bytecode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bytecode")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, bytecode: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_apart(monkeypatch, tmp_path, bytecode)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says nothing sensible, at once."""
    return Path(write_model(tmp_path_factory.mktemp("models") / "tiny.gguf").path)


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights whose long answers take seconds."""
    shape = Shape(layers=8, width=256, heads=8, kv_heads=8, feed=1024, context=4096)
    path = tmp_path_factory.mktemp("models") / "slow.gguf"
    return Path(write_model(path, shape=shape, endless=True).path)


@pytest.fixture(scope="session")
def alice(
    tmp_path_factory: pytest.TempPathFactory, bytecode: Path, tiny: Path, slow: Path
) -> Iterator[NodeProcess]:
    """A node that serves models of every kind. Its answers do not depend on what came before."""
    folder = tmp_path_factory.mktemp("alice")
    others = [
        write_model(folder / "caller.gguf", shape=Shape(context=4096), template=HERMES),
        write_model(folder / "effort.gguf", template=EFFORT),
        write_embedder(folder / "mini.gguf"),
        write_reranker(folder / "judge.gguf"),
    ]
    served = [DEFAULT_MODEL, str(tiny), str(slow), *(one.path for one in others)]
    words = [word for one in served for word in ("--model", one)]
    with running(folder, bytecode, "--name", "alice", "--deterministic", *words) as node:
        yield node


@pytest.fixture(scope="session")
def bob(
    tmp_path_factory: pytest.TempPathFactory, bytecode: Path, alice: NodeProcess
) -> Iterator[NodeProcess]:
    """A client of her mesh."""
    invite = facts(alice)["invite"]
    with running(tmp_path_factory.mktemp("bob"), bytecode, "--client", "--join", invite) as node:
        yield node
