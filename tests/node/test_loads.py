"""What the settings want of a model."""

from pathlib import Path

import msgspec
import pytest

from p2p_mesh.core.experts.assignment import MIN_MASS
from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.records import ModelFile
from p2p_mesh.core.stages import Stage, Topology
from p2p_mesh.errors import ModelError, SettingsError
from p2p_mesh.node.loads import MAX_PLAN, check_stages, check_ways, load, plain
from p2p_mesh.settings import Settings
from p2p_mesh.testing.models import write_model
from p2p_mesh.testing.projectors import write_projector

MODEL = ModelFile(
    id=ModelId("m"), path="/m.gguf", size_bytes=1, architecture="llama", context_length=64,
    kv_bytes_per_token=1,
)  # fmt: skip


def test_every_setting_reaches_the_load() -> None:
    found = load(MODEL, Settings(
        ctx=32, parallel=3, threads=1, max_memory=2.0, kv_type="q8_0", gpu_layers=0,
        deterministic=True, speculation=False, shards=True, min_mass=0.5,
    ))  # fmt: skip
    assert (found.context, found.slots, found.threads) == (32, 3, 1)
    assert (found.memory_limit, found.kv_type, found.gpu_layers) == (2_000_000_000, "q8_0", 0)
    assert (found.deterministic, found.speculation) == (True, False)
    assert (found.shards, found.min_mass) == (True, 0.5)


def test_nothing_set_leaves_it_to_the_backend() -> None:
    found = load(MODEL, Settings())
    assert (found.context, found.slots, found.gpu_layers) == (None, None, None)
    assert (found.kv_type, found.deterministic, found.speculation) == ("f16", False, None)
    assert found.flash is False
    assert (found.shards, found.min_mass) == (False, MIN_MASS)
    assert (found.draft, found.projector) == (None, None)


def test_draft_and_projector_are_read(tmp_path: Path) -> None:
    path = str(write_model(tmp_path / "small.gguf").path)
    eyes = tmp_path / "eyes.gguf"
    write_projector(eyes)
    found = load(MODEL, Settings(draft=path, mmproj=str(eyes)))
    assert found.draft is not None
    assert (found.draft.id, found.draft.architecture) == ("small", "llama")
    assert found.projector is not None
    assert found.projector.size_bytes == eyes.stat().st_size
    assert load(MODEL, Settings(draft="meshnode-demo")).draft is not None


def test_other_models_have_no_companions(tmp_path: Path) -> None:
    settings = Settings(ctx=32, draft="meshnode-demo")
    assert load(MODEL, settings).draft is not None
    found = plain(MODEL, settings)
    assert (found.context, found.draft) == (32, None)


def test_model_is_no_projector(tmp_path: Path) -> None:
    path = str(write_model(tmp_path / "small.gguf").path)
    with pytest.raises(ModelError, match=r"small\.gguf is no projector but a model"):
        load(MODEL, Settings(mmproj=path))


@pytest.mark.parametrize("name", ["draft", "mmproj"])
def test_file_that_is_no_model_is_said_at_once(tmp_path: Path, name: str) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGML")
    for path, words in ((bad, "bad.gguf cannot be used"), (tmp_path / "gone", "there is no model")):
        with pytest.raises(ModelError, match=words):
            load(MODEL, msgspec.structs.replace(Settings(), **{name: str(path)}))


# Stages

TOPOLOGY = Topology(
    model="m", manifest_sha256="a" * 64,
    stages=(Stage(node=PeerId("bob"), layer_start=0, layer_end=4),),
)  # fmt: skip


def test_what_is_wanted_of_stages_reaches_the_load(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(msgspec.json.encode(TOPOLOGY))
    found = plain(MODEL, Settings(split=True, stages=str(path), max_rtt=20, wire="f16"))
    assert (found.split, found.topology) == (True, TOPOLOGY)
    assert (found.most_round_trip, found.wire) == (0.02, "f16")
    plainly = plain(MODEL, Settings())
    assert (plainly.split, plainly.topology, plainly.wire) == (False, None, "f32")
    assert plainly.most_round_trip == 0.08


def test_plan_is_for_its_model_alone(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(msgspec.json.encode(TOPOLOGY))
    settings, other = Settings(stages=str(path)), msgspec.structs.replace(MODEL, id=ModelId("x"))
    assert plain(other, settings).topology is None
    check_stages(settings, [other, MODEL])
    check_stages(Settings(), [other])
    with pytest.raises(SettingsError, match="is a plan for m, and this node has x"):
        check_stages(settings, [other])
    with pytest.raises(SettingsError, match="no model"):
        check_stages(settings, [])


def test_plan_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    bad, large = tmp_path / "bad.json", tmp_path / "large.json"
    bad.write_text("{")
    large.write_bytes(b" " * (MAX_PLAN + 1))
    gone = tmp_path / "gone"
    for path, words in ((bad, "bad.json is no plan"), (large, "bytes"), (gone, "No such file")):
        with pytest.raises(SettingsError, match=words):
            plain(MODEL, Settings(stages=str(path)))


@pytest.mark.parametrize(
    "given",
    [{"--split": True, "--stages": "plan.json"}, {"--stages": "plan.json", "--split": True},
     {"--flash": True, "--shards": False}, {}],
)  # fmt: skip
def test_one_way_to_serve_a_model_is_kept_to(given: dict[str, object]) -> None:
    check_ways(given)


def test_two_ways_to_serve_a_model_are_refused() -> None:
    with pytest.raises(SettingsError, match="--shards and --split are two ways"):
        check_ways({"--split": True, "--flash": False, "--shards": True})
