from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest
from meshnode_llama_cpp import grammar
from meshnode_llama_cpp.grammar import Grammars, Matcher
from meshnode_llama_cpp.model import Model
from numpy.typing import NDArray

from p2p_mesh.errors import RequestError
from p2p_mesh.testing.models import EOS, IM_END

CROWDED = 80
"""Tokens after which an answer is brought to its end."""


@pytest.fixture(scope="module")
def grammars(model: Model) -> Grammars:
    return Grammars(model)


def schema(value: Any) -> str:
    return f"start: %json {json.dumps(value)}"


def mask(matcher: Matcher, model: Model) -> NDArray[np.float32]:
    logits = np.zeros(model.token_count, np.float32)
    matcher.mask(logits)
    return logits


def allowed(matcher: Matcher, model: Model) -> set[int]:
    return set(np.flatnonzero(mask(matcher, model) == 0).tolist())


def texts(matcher: Matcher, model: Model) -> set[bytes]:
    """What may come next; nothing for the end."""
    return {model.piece(token) for token in allowed(matcher, model)}


def write(matcher: Matcher, model: Model, text: str) -> None:
    """Token by token, each one that may come and goes on with that text."""
    rest = text.encode()
    while rest:
        fitting = [
            t for t in allowed(matcher, model) if (p := model.piece(t)) and rest[: len(p)] == p
        ]
        token = max(fitting, key=lambda token: len(model.piece(token)))
        matcher.accept(token)
        rest = rest[len(model.piece(token)) :]


def draw(matcher: Matcher, model: Model, chance: random.Random) -> str:
    """A random answer."""
    answer = b""
    for step in range(2000):
        tokens = allowed(matcher, model)
        token = close(tokens, model) if step > CROWDED else None
        token = chance.choice(sorted(tokens)) if token is None else token
        matcher.accept(token)
        if model.ends(token):
            return answer.decode()
        answer += model.piece(token)
    raise AssertionError(f"no end: {answer!r}")


def close(tokens: set[int], model: Model) -> int | None:
    """What brings a JSON text nearer to its end; where both brackets may come, it is in a string,
    whose end is not theirs.
    """
    found = {b"" if model.ends(token) else model.piece(token): token for token in sorted(tokens)}
    in_string = b"}" in found and b"]" in found
    order = (b"", b'"') if in_string else (b"", b"}", b"]", b'"')
    return next((found[piece] for piece in order if piece in found), None)


def test_only_what_the_grammar_allows_may_come(grammars: Grammars, model: Model) -> None:
    matcher = grammars.compile("start: /[ab]c/")
    assert texts(matcher, model) == {b"a", b"b"}
    write(matcher, model, "b")
    assert texts(matcher, model) == {b"c"}


def test_a_mask_leaves_the_allowed_logits_as_they_are(grammars: Grammars, model: Model) -> None:
    logits = np.arange(model.token_count, dtype=np.float32)
    grammars.compile("start: <[300]> | <[7]>").mask(logits)
    assert logits[300] == 300
    assert logits[7] == 7
    assert np.isneginf(np.delete(logits, [7, 300])).all()


def test_every_end_token_may_end_an_answer(grammars: Grammars, model: Model) -> None:
    matcher = grammars.compile('start: "a"')
    write(matcher, model, "a")
    assert {EOS, IM_END} <= allowed(matcher, model)
    assert all(map(model.ends, allowed(matcher, model)))


def test_the_end_may_come_only_where_the_grammar_can_end(grammars: Grammars, model: Model) -> None:
    matcher = grammars.compile("start: /a{2,3}/")
    write(matcher, model, "a")
    assert not any(map(model.ends, allowed(matcher, model)))
    write(matcher, model, "a")
    assert texts(matcher, model) == {b"a", b""}


def test_after_the_end_only_the_end_may_come(grammars: Grammars, model: Model) -> None:
    matcher = grammars.compile("start: /a*/")
    matcher.accept(IM_END)
    matcher.accept(EOS)
    assert allowed(matcher, model)
    assert all(map(model.ends, allowed(matcher, model)))


def test_after_a_grammar_that_is_used_up_only_the_end_may_come(
    grammars: Grammars, model: Model
) -> None:
    matcher = grammars.compile('start: "ab"')
    write(matcher, model, "ab")
    assert {EOS, IM_END} <= allowed(matcher, model)
    assert all(map(model.ends, allowed(matcher, model)))


def test_control_tokens_come_by_their_id_alone(grammars: Grammars, model: Model) -> None:
    assert not any(map(model.is_control, allowed(grammars.compile(r"start: /(.|\n)+/"), model)))
    assert allowed(grammars.compile('start: <[3]> "x"'), model) == {3}


def test_a_space_that_the_tokenizer_adds_is_not_allowed(grammars: Grammars, model: Model) -> None:
    matcher = grammars.compile('start: "the end"')
    write(matcher, model, "the end")
    assert EOS in allowed(matcher, model)


def test_forced_bytes_are_spelled_as_the_tokenizer_does(grammars: Grammars, model: Model) -> None:
    matcher = grammars.compile('start: "{ you that"')
    spelled = model.tokenize("{ you that", around=False, special=False)[1:]
    for token in spelled[:-1]:
        assert allowed(matcher, model) == {token}
        matcher.accept(token)


@pytest.mark.parametrize("text", ["é", "😀", "\u00a0", "a\x02b", "\x7f"])
def test_characters_that_have_no_token_are_spelled_in_bytes(
    grammars: Grammars, model: Model, text: str
) -> None:
    matcher = grammars.compile(schema({"const": text}))
    assert json.loads(draw(matcher, model, random.Random(0))) == text


def test_a_long_text_that_is_forced_comes_out_whole(grammars: Grammars, model: Model) -> None:
    text = "is it you that he was for? " * 30
    assert (
        json.loads(draw(grammars.compile(schema({"const": text})), model, random.Random(0))) == text
    )


def test_matchers_of_one_grammar_are_independent(grammars: Grammars, model: Model) -> None:
    first, second = grammars.compile("start: /[ab]{2}/"), grammars.compile("start: /[ab]{2}/")
    write(first, model, "a")
    assert texts(first, model) == texts(second, model) == {b"a", b"b"}
    write(second, model, "ab")
    assert EOS in allowed(second, model)
    assert texts(first, model) == {b"a", b"b"}


def test_a_token_that_is_not_allowed_is_an_error(grammars: Grammars, model: Model) -> None:
    matcher = grammars.compile('start: "a"', param="tools")
    with pytest.raises(RequestError, match="tools could not be followed") as caught:
        matcher.accept(model.tokenize("b", around=False)[-1])
    assert caught.value.param == "tools"


def test_steps_that_have_a_small_common_multiple_are_taken(
    grammars: Grammars, model: Model
) -> None:
    steps = [{"type": "number", "multipleOf": step} for step in (0.01, 0.25, 5, 100)]
    matcher = grammars.compile(schema({"anyOf": steps}))
    write(matcher, model, "0.25")
    assert b"1" not in texts(matcher, model)


def test_a_failed_matcher_leaves_the_next_one_alone(grammars: Grammars, model: Model) -> None:
    with pytest.raises(RequestError):
        grammars.compile('start: "a" "c"').accept(300)
    assert texts(grammars.compile('start: "a" "c"'), model) == {b"a"}


def test_only_the_last_grammars_are_kept(model: Model) -> None:
    grammars = Grammars(model)
    for number in range(3 * grammar._KEPT):
        grammars.compile(f'start: "{number}"')
    assert len(grammars._known) == 4


IMPOSSIBLE = {
    "bounds": ({"type": "integer", "minimum": 5, "maximum": 3}, r"minimum \(5\) is greater"),
    "length": ({"type": "string", "minLength": 5, "maxLength": 3}, r"minLength \(5\) is greater"),
    "items": ({"type": "array", "minItems": 3, "maxItems": 1}, r"minItems \(3\) is greater"),
    "pattern and length": (
        {"type": "string", "pattern": "^a$", "minLength": 3},
        "nothing satisfies it: ",
    ),
    "no value": ({"enum": []}, "nothing satisfies it: "),
    "required": (
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        "required property 'a' is unsatisfiable",
    ),
    "keyword": ({"not": {"type": "string"}}, r'the schema uses "not", which is not supported'),
    "format": ({"type": "string", "format": "nope"}, 'the format "nope" is not supported'),
    "type": ({"type": "strin"}, 'there is no type "strin"'),
    "reference": ({"$ref": "#/nope"}, '"#/nope" points at nothing'),
    "remote": ({"$ref": "http://127.0.0.1/x"}, '"http://127.0.0.1/x" is no part of the schema'),
    "file": ({"$ref": "file:///etc/passwd"}, "is no part of the schema"),
    "long reference": ({"$ref": "#/" + "x" * 9999}, "cannot be followed"),
    "broken pattern": ({"type": "string", "pattern": "("}, "unclosed group"),
    "look-ahead": ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    "endless": ({"$ref": "#"}, "nothing satisfies it"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_schema_is_refused_in_words(grammars: Grammars, name: str) -> None:
    value, words = IMPOSSIBLE[name]
    with pytest.raises(RequestError, match=words) as caught:
        grammars.compile(schema(value))
    assert caught.value.param == "response_format"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def chain(link: dict[str, Any], key: str, count: int) -> dict[str, Any]:
    """Definitions, each of which refers to the next."""
    names = {f"d{n}": {**link, key: wrap(key, f"#/$defs/d{n + 1}")} for n in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**names, f"d{count}": {"type": "null"}}}


def wrap(key: str, target: str) -> Any:
    return [{"$ref": target}] if key in ("anyOf", "allOf", "prefixItems") else {"$ref": target}


def nested(key: str, depth: int) -> str:
    return f'{{"{key}":' * depth + "{}" + "}" * depth


HOSTILE = {
    "large": 'start: "' + "a" * 2**20 + '"',
    "many parts": schema([{}] * 20_000),
    "deep": "start: %json " + nested("items", 5000),
    "deep pattern": schema({"type": "string", "pattern": "(" * 20_000 + ")" * 20_000}),
    "large steps": schema({"type": "integer", "multipleOf": 999_983}),
    "large step": schema({"type": "number", "multipleOf": 12345.678}),
    "smallest step": schema({"type": "number", "multipleOf": 1.234567e-10}),
    "half a character": 'start: "\ud800"',
    "largest step": 'start: %json {"type": "integer", "multipleOf": 1e300}',
    "steps": schema({"allOf": [{"type": "integer", "multipleOf": n} for n in (9973, 9967)]}),
    "product": schema(
        {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(5)]} for i in range(9)]}
    ),
    "intersection": "start: T\nT: /.*a.{20}b/ & /.*c.{20}d/ & ~/.*x.{15}y/",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_cost_too_much_is_refused(grammars: Grammars, name: str) -> None:
    with pytest.raises(RequestError, match="cannot be followed"):
        grammars.compile(HOSTILE[name])


@pytest.mark.parametrize("key", ["items", "anyOf", "allOf", "prefixItems", "additionalProperties"])
def test_a_long_chain_of_references_takes_stack_that_is_there(
    grammars: Grammars, model: Model, key: str
) -> None:
    texts(grammars.compile(schema(chain({}, key, 1500))), model)


DEMANDING = {
    "long": {"type": "string", "minLength": 10**9},
    "many": {"type": "array", "minItems": 10**9},
    "wide": {"type": "string", "pattern": "^(a|b)*a(a|b){200}$"},
    "patterns": {"type": "string", "pattern": "^.*a.{30}b.{30}c.{30}d.{30}$"},
    "letters": {"type": "string", "pattern": r"^(\p{L}\w){1000,5000}$"},
    "recursive": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
}


@pytest.mark.parametrize("name", DEMANDING)
def test_a_schema_that_asks_for_much_can_be_begun(
    grammars: Grammars, model: Model, name: str
) -> None:
    matcher, chance = grammars.compile(schema(DEMANDING[name])), random.Random(1)
    for _ in range(20):
        token = chance.choice(sorted(allowed(matcher, model)))
        assert not model.ends(token)
        matcher.accept(token)


WORDS = ("the", "name", "é", "a b", 'quote"d', "tab\t", "emoji 😀")
LEAVES = ("integer", "number", "string", "pattern", "format", "enum", "const", "boolean", "null")


def random_schema(chance: random.Random, depth: int = 3) -> dict[str, Any]:
    if depth and chance.random() < 0.6:
        return chance.choice((random_object, random_array, random_union))(chance, depth - 1)
    return random_leaf(chance, chance.choice(LEAVES))


def random_leaf(chance: random.Random, kind: str) -> dict[str, Any]:
    low, span = chance.randint(-2000, 2000), chance.randint(0, 3000)
    match kind:
        case "integer":
            name = chance.choice(("minimum", "exclusiveMinimum"))
            return {"type": "integer", name: low, "maximum": low + span + 1}
        case "number":
            return {"type": "number", "minimum": low / 8, "maximum": (low + span) / 8}
        case "string":
            least = chance.randint(0, 5)
            return {"type": "string", "minLength": least, "maxLength": least + span % 9}
        case "pattern":
            patterns = (r"^[A-Z]{2}-\d{1,4}$", "^(yes|no)+$", r"^\w+@\w+\.(de|org)$", "^ab")
            return {"type": "string", "pattern": chance.choice(patterns)}
        case "format":
            return {
                "type": "string",
                "format": chance.choice(("ipv4", "uuid", "date", "ipv6", "time")),
            }
        case "enum":
            return {"enum": chance.sample((*WORDS, 1, -2.5, None, True, [1], {"a": 2}), 3)}
        case "const":
            return {"const": chance.choice((*WORDS, {"deep": [1, {"x": "y"}]}))}
        case _:
            return {"type": kind}


def random_object(chance: random.Random, depth: int) -> dict[str, Any]:
    names = chance.sample(WORDS, chance.randint(0, 4))
    made: dict[str, Any] = {
        "type": "object",
        "properties": {name: random_schema(chance, depth) for name in names},
        "required": chance.sample(names, chance.randint(0, len(names))),
    }
    more = chance.choice((None, False, {"type": "integer"}))
    return made if more is None else {**made, "additionalProperties": more}


def random_array(chance: random.Random, depth: int) -> dict[str, Any]:
    least = chance.randint(0, 2)
    made = {"type": "array", "items": random_schema(chance, depth), "minItems": least}
    if chance.random() < 0.3:
        made["prefixItems"] = [random_schema(chance, depth)]
    return {**made, "maxItems": least + chance.randint(1, 3)}


def random_union(chance: random.Random, depth: int) -> dict[str, Any]:
    if chance.random() < 0.5:
        return {"anyOf": [random_schema(chance, depth) for _ in range(chance.randint(1, 3))]}
    return {"$ref": f"#/$defs/{chance.choice(('tree', 'leaf'))}"}


def with_definitions(chance: random.Random) -> dict[str, Any]:
    tree = {
        "type": "object",
        "properties": {"left": {"$ref": "#/$defs/tree"}, "value": {"$ref": "#/$defs/leaf"}},
        "required": ["value"],
        "additionalProperties": False,
    }
    leaf = random_leaf(chance, chance.choice(LEAVES))
    return {**random_schema(chance), "$defs": {"tree": tree, "leaf": leaf}}


@pytest.mark.parametrize("decade", range(10))
def test_random_answers_are_valid(grammars: Grammars, model: Model, decade: int) -> None:
    for seed in range(20 * decade, 20 * decade + 20):
        chance = random.Random(seed)
        wanted = with_definitions(chance)
        answer = json.loads(draw(grammars.compile(schema(wanted)), model, chance))
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.validate(answer, wanted, jsonschema.Draft202012Validator, format_checker=checker)


def test_a_grammar_that_takes_too_long_is_given_up(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammars, slow = Grammars(model), schema({"enum": [f"{n}.{n}" for n in range(40_000)]})
    grammars.compile('start: "a"')
    monkeypatch.setattr(grammar, "SECONDS", 0.001)
    with pytest.raises(RequestError, match=r"takes more than 0\.001 seconds"):
        grammars.compile(slow)
    with pytest.raises(RequestError, match="busy with other schemas"):
        grammars.compile('start: "b"')
    monkeypatch.setattr(grammar, "SECONDS", 20.0)
    assert texts(grammars.compile('start: "b"'), model) == {b"b"}


def test_tables_that_are_being_built_are_waited_for(model: Model) -> None:
    grammars = Grammars(model)
    grammars.prepare()
    assert texts(grammars.compile('start: "a"'), model) == {b"a"}
