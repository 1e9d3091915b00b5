"""What a reference to a model names."""

import pytest

from p2p_mesh.core.reference import HubName, is_hub, read_hub, split_name, split_names
from p2p_mesh.errors import ModelError


@pytest.mark.parametrize(("text", "revision"), [
    ("hf://mesh/qwen-layers", "main"), ("hf://mesh/qwen-layers@v1.0", "v1.0"),
    ("hf://mesh/qwen-layers:" + "0a" * 20, "0a" * 20),
    ("hf://mesh/qwen-layers@refs/pr/3", "refs/pr/3"),
])  # fmt: skip
def test_hub_reference_names_a_repository_at_a_revision(text: str, revision: str) -> None:
    assert is_hub(text)
    found = read_hub(text)
    assert found == HubName("mesh/qwen-layers", revision)
    assert read_hub(str(found)) == found
    assert found.is_fixed == (len(revision) == 40)


@pytest.mark.parametrize("text", [
    "hf://", "hf://one", "hf://a/b/c", "hf://a/b@", "hf://a/../b", "hf://a/b@../../evil", "hf://a/b@/x",
    "hf://.a/b", "hf://a/b@x y", "https://a/b", "hf://a/b\n", "hf://" + "a" * 97 + "/b",
])  # fmt: skip
def test_bad_hub_reference_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="is no hf://namespace/repository"):
        read_hub(text)


def test_name_of_a_split_file_says_which_it_is() -> None:
    assert split_name("big-00002-of-00003.gguf") == ("big", 2, 3)
    assert list(split_names("big-00001-of-00002.gguf")) == [
        "big-00001-of-00002.gguf", "big-00002-of-00002.gguf",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["big.gguf", "big-1-of-2.gguf", "-00001-of-00002.gguf"])
def test_other_names_are_of_one_file(name: str) -> None:
    assert split_name(name) is None
    assert list(split_names(name)) == [name]
