"""What is known of each family."""

import pytest

from p2p_mesh.core.families.family import CERTIFIED, Family, family, refusal


def test_certified_families_are_not_refused() -> None:
    assert not any(refusal(name) for name in CERTIFIED)
    assert all(isinstance(family(name), Family) for name in CERTIFIED)


@pytest.mark.parametrize(
    "name",
    ["hrm_text", "minimax-01", "gemma3n", "gemma4", "rwkv7", "step35", "apertus", "graniteswitch"],
)
def test_families_without_a_sure_rule_are_refused_with_the_reason(name: str) -> None:
    assert name not in CERTIFIED
    assert refusal(name) != refusal("no such family")


@pytest.mark.parametrize("name", ["", "bert", "t5", "LLAMA", "a family of tomorrow"])
def test_unknown_families_are_refused(name: str) -> None:
    assert "not among those proved" in refusal(name)
