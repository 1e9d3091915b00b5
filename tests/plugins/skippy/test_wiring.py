from __future__ import annotations

import msgspec
import pytest
from meshnode_skippy.wiring import Wiring, wiring

from p2p_mesh.core.families.recipe import Recipe

RECIPE = Recipe(
    2, 4, 6, (2, 3, 0), "inject", entry_block=0, exit_block=1, stops=True, needs_tokens=True
)


def test_wiring_says_what_runs() -> None:
    found = wiring(RECIPE)
    assert (found.entry, found.blocks, found.entry_block, found.exit_block) == ("inject", 3, 0, 1)
    assert (found.stops, found.scale, found.needs_tokens, found.is_last) == (True, 1.0, True, False)
    assert wiring(Recipe(4, 6, 6, (4, 5), "rows")).is_last


def test_wiring_travels() -> None:
    found = wiring(RECIPE)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Wiring) == found


@pytest.mark.parametrize("wrong", [{"entry": "x"}, {"blocks": 0}, {"exit_block": -1}])
def test_wiring_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    fields = {"entry": "rows", "blocks": 1, **wrong}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(fields, Wiring)
