"""What the demonstration model is trained on and what it is measured on are told apart."""

import json
import sys
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

# Scripts are programs, not a package: mypy does not look there, and the path comes first.
import demo_texts  # type: ignore[import-not-found]
import demo_world as world  # type: ignore[import-not-found]

COMMITTED = Path(__file__).parents[1] / "models/demo-moe.texts.json"


def test_some_documents_are_kept_apart() -> None:
    rng = Random(3)
    found = sum(demo_texts.apart(world.document(rng)) for _ in range(4000))
    assert 100 < found < 400


def test_same_document_is_always_on_the_same_side() -> None:
    first, again = Random(3), Random(3)
    for _ in range(100):
        one, same = world.document(first), world.document(again)
        assert demo_texts.apart(one) == demo_texts.apart(same)


def test_documents_are_written_with_their_roles() -> None:
    chat = world.Document(system="be brief", turns=(("hello?", "Hello."),))
    assert demo_texts.written(chat) == (
        "<|system|>be brief<|end|><|user|>hello?<|end|><|assistant|>Hello.<|end|>"
    )
    assert demo_texts.written(world.Document(text="Once.")) == "Once.<|end|>"
    assert demo_texts.parts(chat) == ["be brief", "hello?", "Hello."]


def test_committed_texts_are_those_of_the_first_seed() -> None:
    assert json.loads(COMMITTED.read_text()) == demo_texts.texts(1)


def test_nothing_is_measured_on_that_was_trained_on() -> None:
    told = demo_texts.texts(1)
    assert len(told["ranking"]) == len(told["held_out"]) == demo_texts.TEXTS
    assert not set(told["ranking"]) & set(told["held_out"])
