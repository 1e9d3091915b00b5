"""What the engine of a shard is told of the others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from meshnode_expert_shards.participants import Division, Participant, divide
from meshnode_expert_shards.parts import Open, Parts, commands, mask, parts_of
from meshnode_llama_cpp import frames

from p2p_mesh.core.experts.layout import Layout
from p2p_mesh.core.experts.ranking import Ranking
from p2p_mesh.core.names import PeerId


@given(st.sets(st.integers(0, 99)))
def test_mask_has_a_bit_for_each_expert(chosen: set[int]) -> None:
    bits = int.from_bytes(mask(sorted(chosen), 100), "little")
    assert {one for one in range(104) if bits >> one & 1} == chosen


def test_every_part_of_a_division_is_told(experts: Layout, ranking: Ranking) -> None:
    people = [Participant(PeerId(name), 32 * experts.bytes_per_expert) for name in "ab"]
    division = divide(ranking, experts, people, min_mass=0)
    assert isinstance(division, Division)
    found = parts_of(division, PeerId("b"), 48)
    assert (found.own, found.peers) == (1, ("a", "b"))
    for part, masks in zip(division.assignment.parts, found.experts, strict=True):
        assert masks == tuple(mask(chosen, 48) for chosen in part.experts)


def test_commands_come_as_they_were_sent() -> None:
    dealt = Parts(0, ("a",), ((b"\x01",),))
    opened = Open(frames.Open("m", "p", 64, 1, 1), "r", dealt)
    sent: list[object] = [opened, dealt, frames.Cancel(1)]
    data = b"".join(frames.encode(one) for one in sent)  # type: ignore[arg-type]
    assert list(commands().feed(data)) == sent
