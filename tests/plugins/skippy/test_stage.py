from __future__ import annotations

import numpy as np
import pytest
from meshnode_llama_cpp.drawing import Fed, Start
from meshnode_llama_cpp.library import start
from meshnode_skippy.stage import Stage
from meshnode_skippy.wire import Batch, Orders

from p2p_mesh.core.records import Sampling
from p2p_mesh.errors import RemoteError
from tests.plugins.skippy.ring import CONTEXT, SLOTS, commands, opened


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[Stage]:
    start()
    opens = commands(tmp_path_factory.mktemp("stages"), stages=2, deterministic=True)
    return [opened(command) for command in opens]


def batch(epoch: int, tokens: list[int], *, position: int = 0, slot: int = 0) -> Batch:
    made = Batch(epoch, 1, len(tokens))
    made.slots[:], made.tokens[:] = slot, tokens
    made.positions[:] = range(position, position + len(tokens))
    made.outputs[-1] = 1
    return made


def through(stages: list[Stage], made: Batch) -> Batch:
    for stage in stages:
        assert stage.compute(made)
    return made


def begun(epoch: int, slot: int = 0, **more: str) -> Batch:
    made = batch(epoch, [1, 10, 20], slot=slot)
    made.orders = Orders(
        begins=(Start(slot, Sampling(temperature=0), **more),),  # type: ignore[arg-type]
        fed=(Fed(slot, 2),),
    )
    return made


def test_rows_go_in_and_a_token_comes_out(stages: list[Stage]) -> None:
    made = through(stages, begun(1))
    (drawn,) = stages[1].draw(made)
    assert len(drawn.tokens) == 1
    assert made.slowest > 0
    assert made.total >= made.slowest


def test_a_newer_epoch_begins_with_an_empty_memory(stages: list[Stage]) -> None:
    one = stages[1].draw(through(stages, begun(5)))
    assert stages[1].draw(through(stages, begun(6))) == one


def test_a_batch_of_an_older_epoch_is_nobodys(stages: list[Stage]) -> None:
    through(stages, begun(9))
    assert not stages[0].compute(begun(8))


def test_orders_are_obeyed_before_the_rows(stages: list[Stage]) -> None:
    (first,) = stages[1].draw(through(stages, begun(10)))
    more = batch(10, [first.tokens[0]], position=3)
    more.orders = Orders(fed=(Fed(0, 0, 1),))
    (second,) = stages[1].draw(through(stages, more))
    again = batch(10, [first.tokens[0]], position=3, slot=1)
    again.orders = Orders(
        memory=(("forget", 1, 0), ("copy", 0, 1), ("trim", 1, 3)),
        begins=(Start(1, Sampling(temperature=0)),), fed=(Fed(1, 0, 1),),
    )  # fmt: skip
    assert stages[1].draw(through(stages, again))[0].tokens == second.tokens


def test_a_grammar_that_cannot_be_fails_its_own_sequence(stages: list[Stage]) -> None:
    (drawn,) = stages[1].draw(through(stages, begun(11, grammar="start: nothing")))
    assert "cannot be followed" in drawn.failure
    assert stages[1].draw(through(stages, begun(11, slot=1)))[0].tokens


@pytest.mark.parametrize("change", ["slot", "position", "row", "order", "rows", "begin", "end"])
def test_rows_without_a_place_are_refused(stages: list[Stage], change: str) -> None:
    made = begun(12)
    match change:
        case "slot":
            made.slots[0] = SLOTS
        case "position":
            made.positions[0] = CONTEXT
        case "row":
            made.orders = Orders(fed=(Fed(0, 3),))
        case "begin":
            made.orders = Orders(begins=(Start(SLOTS, Sampling()),))
        case "end":
            made.orders = Orders(ends=(-1,))
        case "order":
            made.orders = Orders(memory=(("trim", 0, CONTEXT + 1),))
        case _:
            made = batch(12, [1] * 64)
    with pytest.raises(RemoteError):
        stages[1].check(made)


def test_activations_of_another_shape_are_refused(stages: list[Stage]) -> None:
    made = begun(13)
    made.given = np.zeros((3, 5), np.float32)
    with pytest.raises(RemoteError):
        stages[1].compute(made)
