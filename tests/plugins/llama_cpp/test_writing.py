from __future__ import annotations

import pytest
from meshnode_llama_cpp.context import Context
from meshnode_llama_cpp.decoder import Decoder
from meshnode_llama_cpp.drawing import Drawing
from meshnode_llama_cpp.frames import Answer
from meshnode_llama_cpp.grammar import Grammars
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.prompt import Prompts
from meshnode_llama_cpp.scheduler import EXACT
from meshnode_llama_cpp.seats import Seats
from meshnode_llama_cpp.steps import Here
from meshnode_llama_cpp.writing import Writing

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import EmbedQuery, InferenceRequest, Sampling, TokenPrompt
from p2p_mesh.errors import ContextExceeded, RequestError

ROOM = 64


@pytest.fixture
def writing(context: Context, model: Model) -> Writing:
    grammars = Grammars(model)
    decoder = Decoder(
        model, Here(context, Drawing(context, model, grammars)), seats=Seats(context, 2),
        grammars=grammars, limits=EXACT, context_length=ROOM,
    )  # fmt: skip
    return Writing(model, Prompts(model, ROOM), decoder, context_length=ROOM)


def request(count: int, **more: object) -> InferenceRequest:
    prompt = TokenPrompt(tokens=(5,) * count)
    return InferenceRequest(
        id=RequestId("r"), model=ModelId("m"), prompt=prompt,
        sampling=Sampling(temperature=0), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def test_requests_are_answered_and_cancelled(writing: Writing) -> None:
    assert writing.idle
    writing.ask(1, request(4, max_tokens=2))
    writing.ask(2, request(4, max_tokens=2))
    writing.cancel(2)
    told = [one for _ in range(20) for one in writing.step()]
    assert {one.number for one in told} == {1}
    assert all(isinstance(one, Answer) for one in told)
    assert writing.idle


def test_a_prompt_must_leave_room_for_a_token(writing: Writing) -> None:
    writing.ask(1, request(ROOM - 1))
    with pytest.raises(ContextExceeded, match=f"has {ROOM} tokens"):
        writing.ask(2, request(ROOM))


def test_it_makes_no_vectors(writing: Writing) -> None:
    with pytest.raises(RequestError, match="no vectors"):
        writing.look(EmbedQuery(model=ModelId("m"), inputs=("a",)), lambda: False)
