from __future__ import annotations

from meshnode_llama_cpp.context import Context
from meshnode_llama_cpp.drawing import Drawing, Fed, Start
from meshnode_llama_cpp.grammar import Grammars
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.steps import Here

from p2p_mesh.core.records import Sampling


def test_a_call_here_has_come_when_it_is_submitted(context: Context, model: Model) -> None:
    here = Here(context, Drawing(context, model, Grammars(model)))
    assert here.has_room
    assert here.together(5) == 5
    here.begin(Start(1, Sampling(temperature=0)))
    row = here.rows.add(1, 0, [1, 10, 20], outputs=1)
    here.submit([Fed(1, row)], writing=0)
    (result,) = here.results()
    assert [len(one.tokens) for one in result.drawn] == [1]
    assert result.seconds > 0
    assert here.results() == []
    here.end(1)
