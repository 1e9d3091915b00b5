"""The village's text generator: same seed, same text; clean, complete answers; true facts."""

import sys
from pathlib import Path
from random import Random

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

# Scripts are programs, not a package: mypy does not look there, and the path comes first.
import demo_world as world  # type: ignore[import-not-found]  # noqa: E402


def documents(seed: int, count: int = 2000) -> list[world.Document]:
    rng = Random(seed)
    return [world.document(rng) for _ in range(count)]


def answers(seed: int) -> list[str]:
    return [answer for doc in documents(seed) for _, answer in doc.turns]


def names(kin: dict[str, list[str]]) -> set[str]:
    return {name for who in kin.values() for name in who}


def test_same_seed_gives_same_text() -> None:
    assert documents(7, 200) == documents(7, 200)


def test_other_seed_gives_other_text() -> None:
    assert documents(7, 200) != documents(8, 200)


def test_answers_end_properly() -> None:
    recited = [say for _, say in world.LISTS]
    ends = [answer for answer in answers(1) if answer not in recited]
    assert {answer[-1] for answer in ends} <= set(".!?")


def test_answers_begin_with_a_capital_or_digit() -> None:
    assert all(a[0].isupper() or a[0].isdigit() or a[0] == '"' for a in answers(2))


def test_no_template_is_left_over() -> None:
    for doc in documents(3):
        for text in [doc.system, doc.text, *(text for turn in doc.turns for text in turn)]:
            assert not set("{}|") & set(text)
            assert " / " not in text


def test_story_stars_its_hero() -> None:
    assert all("Agnes" in world.story(Random(seed), "Agnes") for seed in range(50))


def test_story_stars_its_animal() -> None:
    assert all("Biscuit" in world.story(Random(seed), "Biscuit") for seed in range(50))


def test_story_is_long_enough_to_stream() -> None:
    lengths = [len(world.story(Random(seed)).split()) for seed in range(200)]
    assert min(lengths) > 50
    assert max(lengths) < 160


def test_brief_answers_are_the_shortest_of_a_topic() -> None:
    topic = next(t for t in world.TOPICS if t.kind == "person.home" and t.subject == "Nell")
    assert world.answer(topic, Random(0), True) == "Nell lives next to the boatyard."


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who is Mara's sister?", "Mara's sister is Nell."),
        ("Who owns Biscuit?", "Biscuit belongs to Mara."),
        ("Who is the baker?", "The baker is Mara."),
        ("What colour is the Silver Herring?", "The Silver Herring is blue."),
        ("How many people live in Tidewick?", "Thirty-two people live in Tidewick."),
        ("Does Orrin have a boat?", "Yes, Orrin has a rowing boat called the Thistle."),
    ],
)
def test_fact(question: str, answer: str) -> None:
    assert [t.say[0] for t in world.TOPICS if question in t.ask] == [answer]


def test_everyone_has_a_home() -> None:
    assert all("home" in world.PEOPLE[name] for name in world.NAMES)


def test_relatives_know_each_other() -> None:
    for name, kin in world.FAMILY.items():
        for who in kin.values():
            assert all(name in names(world.FAMILY[other]) for other in who)


def test_village_counts_are_true() -> None:
    assert len(world.NAMES) == 32
    assert len(world.BOATS) == 8
    assert [row[0] for row in world.PETS if row[1] in ("cat", "kitten")] == [
        "Smoke",
        "Button",
        "Inky",
    ]
    assert len([row for row in world.PETS if "dog" in row[1]]) == 3


def test_strangers_are_not_villagers() -> None:
    assert not set(world.STRANGERS) & set(world.NAMES)
