from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.prompt import Prompts

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import (
    ChatPrompt,
    DetokenizeQuery,
    InferenceRequest,
    TextPrompt,
    TokenizeQuery,
    TokenPrompt,
    Tool,
)
from p2p_mesh.errors import ContextExceeded, ModelError, RequestError
from p2p_mesh.testing.models import BOS, EOS, IM_END, IM_START, LOOPING, write_model


def ask(prompt: ChatPrompt | TextPrompt | TokenPrompt, **more: Any) -> InferenceRequest:
    return InferenceRequest(id=RequestId("r"), model=ModelId("tiny"), prompt=prompt, **more)


HELLO = ask(ChatPrompt(messages=({"role": "user", "content": "Hello"},)))


def load(path: Path, template: str | None) -> Model:
    write_model(path, template=template)
    return Model(str(path), name=path.stem, progress=lambda _: None)


def test_a_chat_is_written_by_the_template(model: Model) -> None:
    tokens = Prompts(model, 512).read(HELLO).tokens
    assert tokens[:2] == [BOS, IM_START]
    assert tokens.count(IM_START) == 2
    assert tokens.count(IM_END) == 1


def test_the_beginning_is_not_doubled(tmp_path: Path) -> None:
    template = "{{ bos_token }}{{ messages[0].content }}"
    tokens = Prompts(load(tmp_path / "twice.gguf", template), 512).read(HELLO).tokens
    assert tokens.count(BOS) == 1


def test_a_text_is_tokenized_as_it_is(model: Model) -> None:
    prompts = Prompts(model, 512)
    assert prompts.read(ask(TextPrompt(text="the"))).tokens == model.tokenize("the")


def test_tokens_pass_through(model: Model) -> None:
    assert Prompts(model, 512).read(ask(TokenPrompt(tokens=(5, 6)))).tokens == [5, 6]


def test_a_token_outside_the_vocabulary_is_refused(model: Model) -> None:
    with pytest.raises(RequestError, match="token 512; the model's vocabulary has 512") as caught:
        Prompts(model, 512).read(ask(TokenPrompt(tokens=(5, 512))))
    assert caught.value.param == "prompt"


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(model: Model) -> None:
    prompt = TokenPrompt(tokens=(5,) * 9000)
    with pytest.raises(ContextExceeded, match="9000 tokens, the model's context is 4096"):
        Prompts(model, 4096).read(ask(prompt))


def test_a_text_that_cannot_fit_is_not_tokenized_whole(model: Model) -> None:
    with pytest.raises(ContextExceeded, match=r"more than \d+ tokens, the model.s context is 64"):
        Prompts(model, 64).read(ask(TextPrompt(text="a" * 100_000)))


def test_a_model_without_template_gets_chatml(tmp_path: Path) -> None:
    prompts = Prompts(load(tmp_path / "plain.gguf", None), 512)
    assert prompts.read(HELLO).tokens.count(IM_START) == 2
    assert prompts.read(HELLO).stops == ("<|im_end|>",)
    assert prompts.notes == ("plain has no chat template; ChatML is used",)


def test_a_model_with_template_stops_where_it_is_told(model: Model) -> None:
    prompts = Prompts(model, 512)
    assert prompts.read(ask(TextPrompt(text="a"), stop=("x",))).stops == ("x",)
    assert prompts.notes == ()


def test_a_looping_template_is_found_at_once(tmp_path: Path) -> None:
    model = load(tmp_path / "loop.gguf", LOOPING)
    with pytest.raises(ModelError, match="the chat template of loop did not end within 1 s"):
        Prompts(model, 512)


def test_broken_unicode_from_a_template_does_no_harm(tmp_path: Path) -> None:
    model = load(tmp_path / "broken.gguf", r"{{ '\ud800' }}")
    assert Prompts(model, 512).read(HELLO).tokens[0] == BOS


def test_ends_of_texts_are_known(model: Model) -> None:
    assert (model.begin, model.end) == (BOS, EOS)


USER = {"role": "user", "content": "Weather?"}
WEATHER = Tool(name="weather", parameters={"properties": {"city": {"type": "string"}}})
ROUND = (
    USER,
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_1", "type": "function",
         "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
    {"role": "user", "content": "Thanks"},
)  # fmt: skip
THINKS = (
    "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n{# </think> #}"
    '{# <tool_call>{"name": 1}</tool_call> #}'
)


def spelled(model: Model, tokens: list[int]) -> str:
    return b"".join(map(model.piece, tokens)).decode()


def test_tools_reach_a_template_that_knows_nothing_of_them(model: Model) -> None:
    prompt = Prompts(model, 4096).read(ask(ChatPrompt(messages=ROUND, tools=(WEATHER,))))
    text = spelled(model, prompt.tokens)
    assert '"name": "weather"' in text
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>' in text
    assert "<tool_response>\nSunny.\n</tool_response>" in text
    call = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    assert [part.name for part in prompt.parser().push(call).calls][:1] == ["weather"]


def test_tools_that_are_not_to_be_used_are_hidden(model: Model) -> None:
    chat = ChatPrompt(messages=(USER,), tools=(WEATHER,), tool_choice="none")
    prompt = Prompts(model, 512).read(ask(chat))
    assert prompt.tokens == Prompts(model, 512).read(ask(ChatPrompt(messages=(USER,)))).tokens
    assert prompt.parser().push("<tool_call>x").text == "<tool_call>x"


def test_a_parser_knows_what_the_template_opened(tmp_path: Path) -> None:
    model = load(tmp_path / "thinks.gguf", THINKS)
    prompt = Prompts(model, 512).read(HELLO)
    assert prompt.parser().push("Hm.").reasoning == "Hm."
    assert prompt.parser().reasoning


def test_demanded_calls_and_schemas_have_a_grammar(model: Model) -> None:
    chat = ChatPrompt(messages=(USER,), tools=(WEATHER,), tool_choice="required")
    demanded = Prompts(model, 4096).read(ask(chat)).grammar
    assert demanded is not None
    assert '%json {"type": "object"' in demanded
    assert Prompts(model, 512).read(ask(TextPrompt(text="a"), schema={})).grammar is not None
    assert Prompts(model, 512).read(HELLO).grammar is None


def test_what_cannot_be_demanded_is_refused(model: Model) -> None:
    with pytest.raises(RequestError, match="there are no tools"):
        Prompts(model, 512).read(ask(ChatPrompt(messages=(USER,), tool_choice="required")))
    deep: dict[str, Any] = {}
    for _ in range(70):
        deep = {"items": deep}
    with pytest.raises(RequestError) as caught:
        Prompts(model, 512).read(ask(TextPrompt(text="a"), schema=deep))
    assert caught.value.param == "response_format"


def test_a_suffix_needs_a_model_that_fills_gaps(model: Model) -> None:
    with pytest.raises(RequestError, match="not trained to fill gaps") as caught:
        Prompts(model, 512).read(ask(TextPrompt(text="a", suffix="b")))
    assert caught.value.param == "suffix"


PICTURE = {"role": "user", "content": [
    {"type": "text", "text": "See"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aW1hZ2U="}}]}  # fmt: skip


def test_images_are_read_where_their_markers_stand(model: Model) -> None:
    def read_media(text: str, media: Any) -> list[Any]:
        assert text.count("<m>") == 1
        return [[5, 6], media[0], [7]]

    prompts = Prompts(model, 512, read_media=read_media, marker="<m>")
    prompt = prompts.read(ask(ChatPrompt(messages=(PICTURE,))))
    assert prompt.parts == ([5, 6], b"image", [7])
    assert prompt.tokens == [5, 6, 7]


def test_a_model_without_projector_takes_no_images(model: Model) -> None:
    with pytest.raises(RequestError, match="this model takes no images"):
        Prompts(model, 512).read(ask(ChatPrompt(messages=(PICTURE,))))


def test_texts_are_tokenized_and_back(model: Model) -> None:
    prompts = Prompts(model, 512)
    query = TokenizeQuery(model=ModelId("tiny"), prompt=TextPrompt(text="the é"), with_pieces=True)
    found = prompts.tokens(query)
    assert list(found.tokens) == model.tokenize("the é")
    assert found.pieces[0] == b"<s>"
    back = DetokenizeQuery(model=ModelId("tiny"), tokens=found.tokens[1:])
    assert prompts.text(back).text.strip() == "the é"


def test_a_whole_chat_is_tokenized(model: Model) -> None:
    prompts = Prompts(model, 512)
    query = TokenizeQuery(model=ModelId("tiny"), prompt=HELLO.prompt)  # type: ignore[arg-type]
    assert list(prompts.tokens(query).tokens) == prompts.read(HELLO).tokens


def test_unknown_tokens_have_no_text(model: Model) -> None:
    with pytest.raises(RequestError, match="has token 512") as caught:
        Prompts(model, 512).text(DetokenizeQuery(model=ModelId("tiny"), tokens=(512,)))
    assert caught.value.param == "tokens"


SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
)
WORDS = ["type", "properties", "required", "enum", "anyOf", "$defs", "$ref", "items", "string",
         "object", "id", "function", "name", "arguments", "{}", "text", "image_url",
         "input_audio", "url", "data", "format", "role", "user", "assistant", "tool", "system",
         "content", "tool_calls", "tool_call_id", "reasoning_content"]  # fmt: skip
KEYS = st.sampled_from(WORDS) | st.text(max_size=4)
JSON = st.recursive(
    SCALARS | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
JUNK = JSON | st.recursive(
    SCALARS | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS | st.binary(max_size=4) | st.integers(0, 9), inner, max_size=2)
    ),
    max_leaves=6,
)


def objects(*known: str, junk: st.SearchStrategy[Any] = JUNK) -> st.SearchStrategy[dict[str, Any]]:
    """Anything in the fields that mean something, and in others."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys((*known, "x"), junk))


TEXTS = st.fixed_dictionaries({"type": st.just("string")}, optional={"enum": JSON})
SCHEMAS = objects("properties", "required", "$defs") | st.fixed_dictionaries(
    {"properties": st.dictionaries(KEYS, TEXTS, max_size=3)
     | st.dictionaries(KEYS, objects("type", "enum", "anyOf", "oneOf", "$ref", junk=JSON)) | JSON},
    optional={"type": JSON, "required": st.lists(KEYS) | JSON, "$defs": JSON, "definitions": JSON},
)  # fmt: skip
CALLS = st.fixed_dictionaries(
    {
        "function": st.fixed_dictionaries(
            {"name": st.just("add")}, optional={"arguments": st.just("{}") | JUNK}
        )
    },
    optional={"id": JUNK, "type": JUNK},
)
PARTS = st.builds(lambda text: {"type": "text", "text": text}, st.text()) | objects(
    "type", "text", "image_url", "input_audio"
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"])},
    optional={
        "content": st.text() | st.none() | st.lists(PARTS, max_size=2) | JUNK,
        "tool_calls": st.lists(CALLS, max_size=2) | st.just([]) | JUNK,
        "tool_call_id": JUNK,
        "reasoning_content": JUNK,
    },
) | objects("role", "content")
TAGGED = (
    "{# <tool_call> <function= <parameter= #}{{ tools | tojson }}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
SHORT = (
    "[TOOL_CALLS]{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{% if c.id | length != 9 %}{{ raise_exception('id') }}{% endif %}"
    "{{ c.function.arguments }}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Prompts]:
    folder = tmp_path_factory.mktemp("templates")
    templates = {"tagged": TAGGED, "plain": PLAIN, "short": SHORT}
    return {name: Prompts(load(folder / f"{name}.gguf", source), 16_384)
            for name, source in templates.items()}  # fmt: skip


@pytest.mark.parametrize("name", ["tagged", "plain", "short"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_a_peer_sends_is_read_or_refused(
    readers: dict[str, Prompts], name: str, data: st.DataObject
) -> None:
    tools = st.lists(st.builds(Tool, name=st.sampled_from(["a", "b"]), parameters=SCHEMAS,
                               strict=st.booleans()), max_size=2)  # fmt: skip
    chat = ChatPrompt(
        messages=tuple(data.draw(st.lists(MESSAGES, min_size=1, max_size=2))),
        tools=tuple(data.draw(tools)),
        tool_choice=data.draw(st.sampled_from(["auto", "none", "required"])),
        variables=data.draw(st.just({}) | st.dictionaries(KEYS, JUNK, max_size=2)),
    )
    request = ask(chat, schema=data.draw(st.none() | SCHEMAS))
    try:
        prompt = readers[name].read(request)
    except RequestError:
        return
    prompt.parser().push("<tool_call>")


def deep(link: str, depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {link: value}
    return value


@pytest.mark.parametrize("name", ["tagged", "plain", "short"])
@pytest.mark.parametrize("depth", [70, 400])
def test_what_is_too_deep_is_refused_in_words(
    readers: dict[str, Prompts], name: str, depth: int
) -> None:
    parts = [{"type": deep("x", depth)}]
    call = {"id": deep("x", depth), "function": {"name": "a", "arguments": deep("x", depth)}}
    tool = Tool(name="a", parameters=deep("items", depth))
    for chat in (
        ChatPrompt(messages=(USER,), tools=(tool,)),
        ChatPrompt(messages=({"role": "user", "content": parts},)),
        ChatPrompt(messages=({"role": "assistant", "tool_calls": [call]}, USER)),
    ):
        with pytest.raises(RequestError, match=r"nested deeper than 64|not dict"):
            readers[name].read(ask(chat))


@pytest.mark.parametrize("name", ["tagged", "plain", "short"])
def test_a_schema_as_deep_as_may_be_is_read(readers: dict[str, Prompts], name: str) -> None:
    tool = Tool(name="a", parameters=deep("items", 63))
    chat = ChatPrompt(messages=(USER,), tools=(tool,), tool_choice="required")
    assert readers[name].read(ask(chat)).grammar is not None
