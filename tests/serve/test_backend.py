"""The contract between a node and whatever runs a model."""

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import ModelFile
from p2p_mesh.serve.backend import Description, Load

MODEL = ModelFile(
    id=ModelId("m"), path="/m", size_bytes=1, architecture="x", context_length=1,
    kv_bytes_per_token=1,
)  # fmt: skip


def test_progress_is_no_part_of_what_a_load_is() -> None:
    heard: list[float] = []
    load = Load(MODEL, progress=heard.append)
    load.progress(0.5)
    assert heard == [0.5]
    assert load == Load(MODEL)
    Load(MODEL).progress(1.0)  # nobody listens


def test_an_engine_can_be_resumed_unless_it_says_otherwise() -> None:
    about = Description(capabilities=frozenset({"generate"}), context=1, slots=1)
    assert about.resumable
