from __future__ import annotations

from meshnode_llama_cpp.chat import Grown
from meshnode_llama_cpp.choice import NOTHING, joined, rest

from p2p_mesh.core.records import CallDelta, Resume


def test_parts_are_joined_in_order() -> None:
    call = CallDelta(name="f")
    parts = (Grown(text="a"), NOTHING, Grown(reasoning="b", calls=(call,)), Grown(text="c"))
    assert joined(parts) == Grown(text="ac", reasoning="b", calls=(call,))
    assert joined((NOTHING, NOTHING)) == NOTHING


def test_what_was_delivered_is_not_delivered_again() -> None:
    grown = Grown(text="hello", reasoning="why")
    assert rest(grown, Resume(text=2, reasoning=3)) == Grown(text="llo")


def test_a_call_goes_on_without_its_name() -> None:
    calls = (
        CallDelta(index=0, name="f"),
        CallDelta(index=0, arguments='{"a"'),
        CallDelta(index=0, arguments=": 1}"),
        CallDelta(index=1, name="g"),
        CallDelta(index=1, arguments="{}"),
    )
    found = rest(Grown(calls=calls), Resume(calls=(5,)))
    assert found.calls == (
        CallDelta(index=0, arguments=" 1}"),
        CallDelta(index=1, name="g", arguments="{}"),
    )
    assert rest(Grown(calls=calls), Resume(calls=(8, 2))).calls == ()
