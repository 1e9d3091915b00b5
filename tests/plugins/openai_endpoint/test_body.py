"""A request in the words of a foreign server."""

from typing import Any

import pytest
from meshnode_openai_endpoint.body import completion, refuse_ignored

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import (
    ChatPrompt,
    InferenceRequest,
    Resume,
    Sampling,
    TextPrompt,
    TokenPrompt,
    Tool,
)
from p2p_mesh.errors import RequestError

CHAT = ChatPrompt(messages=({"role": "user", "content": "hello"},))
PLAIN = {
    "model": "served", "stream": True, "stream_options": {"include_usage": True},
    "seed": 0,
}  # fmt: skip


def body(prompt: Any = CHAT, **fields: Any) -> dict[str, Any]:
    request = InferenceRequest(
        id=RequestId("r"), model=ModelId("served@foreign:80"), prompt=prompt, **fields
    )
    return completion(request, "served")[1]


def added(prompt: Any = CHAT, **fields: Any) -> dict[str, Any]:
    """What fields add to a plain request."""
    plain = {**PLAIN, "messages": [{"role": "user", "content": "hello"}]}
    return {name: value for name, value in body(prompt, **fields).items()
            if plain.get(name) != value}  # fmt: skip


def test_plain_chat() -> None:
    request = InferenceRequest(id=RequestId("r"), model=ModelId("m"), prompt=CHAT)
    path, found = completion(request, "served")
    assert path == "chat/completions"
    assert found == {**PLAIN, "messages": [{"role": "user", "content": "hello"}]}


def test_sampling_that_differs_is_sent() -> None:
    sampling = Sampling(
        temperature=0.5, top_k=1, min_p=0.0, repeat_penalty=1.5, presence_penalty=0.25,
        seed=2**31 + 7, logit_bias=((5, -100.0),),
    )  # fmt: skip
    assert added(sampling=sampling) == {
        "temperature": 0.5, "top_k": 1, "min_p": 0.0, "presence_penalty": 0.25, "seed": 7,
        "repeat_penalty": 1.5, "repetition_penalty": 1.5, "logit_bias": {"5": -100.0},
    }  # fmt: skip


def test_sampling_that_the_client_left_out_is_the_servers_own() -> None:
    assert not {"temperature", "top_p"} & body(sampling=Sampling(seed=5)).keys()
    assert added(sampling=Sampling(temperature=0.0, top_p=0.5)) == {
        "temperature": 0.0,
        "top_p": 0.5,
    }


def test_limits() -> None:
    assert added(choices=2, max_tokens=7, stop=("a",)) == {"n": 2, "max_tokens": 7, "stop": ["a"]}


def test_schema_is_a_response_format() -> None:
    assert added(schema={"type": "object"}) == {"response_format": {"type": "json_object"}}
    named = {"name": "answer", "schema": {"type": "array"}, "strict": True}
    assert added(schema={"type": "array"}) == {
        "response_format": {"type": "json_schema", "json_schema": named}
    }


def test_tools() -> None:
    prompt = ChatPrompt(
        messages=CHAT.messages,
        tools=(Tool(name="add", description="Adds", parameters={"type": "object"}, strict=True),
               Tool(name="bare")),
        tool_choice="required",
        parallel_tool_calls=False,
    )  # fmt: skip
    add = {"name": "add", "description": "Adds", "parameters": {"type": "object"}, "strict": True}
    assert added(prompt) == {
        "tools": [{"type": "function", "function": add},
                  {"type": "function", "function": {"name": "bare"}}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }  # fmt: skip


def test_variables_of_the_template() -> None:
    prompt = ChatPrompt(
        messages=CHAT.messages, variables={"reasoning_effort": "low", "enable_thinking": False}
    )
    assert added(prompt) == {
        "reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}
    }  # fmt: skip


def test_logprobs_of_a_chat_and_of_a_text() -> None:
    assert added(logprobs=0) == {"logprobs": True}
    assert added(logprobs=3) == {"logprobs": True, "top_logprobs": 3}
    assert body(TextPrompt(text="x"), logprobs=3)["logprobs"] == 3


def test_text_and_tokens() -> None:
    text = TextPrompt(text="hello", suffix="bye")
    request = InferenceRequest(id=RequestId("r"), model=ModelId("m"), prompt=text, echo=True)
    path, found = completion(request, "served")
    assert path == "completions"
    assert found == {**PLAIN, "prompt": "hello", "suffix": "bye", "echo": True}
    assert body(TokenPrompt(tokens=(1, 2)))["prompt"] == [1, 2]


def test_foreign_answers_are_not_resumed() -> None:
    with pytest.raises(RequestError, match="cannot be continued"):
        body(resume=(Resume(text=5),))


@pytest.mark.parametrize(
    ("prompt", "echo", "param"),
    [(TextPrompt(text="a", suffix="b"), False, "suffix"), (TextPrompt(text="a"), True, "echo"),
     (TokenPrompt(tokens=(1,)), True, "echo")],
)  # fmt: skip
def test_what_llama_server_ignores_is_refused(prompt: Any, echo: bool, param: str) -> None:
    request = InferenceRequest(id=RequestId("r"), model=ModelId("m"), prompt=prompt, echo=echo)
    with pytest.raises(RequestError, match=f"{param}: .*llama-server at http://f:1") as caught:
        refuse_ignored(request, "http://f:1")
    assert caught.value.param == param


def test_what_llama_server_takes_is_not_refused() -> None:
    for prompt in (CHAT, TextPrompt(text="a"), TokenPrompt(tokens=(1,))):
        request = InferenceRequest(id=RequestId("r"), model=ModelId("m"), prompt=prompt)
        refuse_ignored(request, "http://f:1")
