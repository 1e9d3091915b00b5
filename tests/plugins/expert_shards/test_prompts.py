from __future__ import annotations

from pathlib import Path

import pytest
from meshnode_expert_shards import prompts
from meshnode_expert_shards.prompts import bundled, read

from p2p_mesh.core.records import ChatPrompt, TextPrompt
from p2p_mesh.errors import ModelError


def test_the_bundled_prompts_are_of_many_kinds() -> None:
    found = bundled()
    assert len(found) == 40
    assert sum(isinstance(one, ChatPrompt) for one in found) >= 8
    text = " ".join(one.text for one in found if isinstance(one, TextPrompt))
    assert all(word in text for word in ("def ", "SELECT", '{"order"', "Theorem", "人工"))


def test_a_file_of_text_has_a_prompt_on_each_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text('one\n\n{"prompt": "two"}\n')
    assert read(path) == (TextPrompt(text="one"), TextPrompt(text='{"prompt": "two"}'))


def test_a_file_of_json_has_texts_and_chats(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    chat = '{"messages": [{"role": "user", "content": "a\u2028b"}], "model": "any"}'
    path.write_text(f'{{"prompt": "one", "id": 7}}\n{chat}\n')
    text, second = read(path)
    assert text == TextPrompt(text="one")
    assert second == ChatPrompt(messages=({"role": "user", "content": "a\u2028b"},))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2 is no JSON"),
        ("[1]", '"prompt" .a text. or "messages" .a chat. is wanted'),
        ('{"prompt": ""}', "is wanted"),
        ('{"prompt": 7}', "is wanted"),
        ('{"messages": []}', "is wanted"),
        ('{"messages": ["hello"]}', "line 2: Expected `object`"),
        ("[" * 100_000, "line 2 is no JSON"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "good"}}\n{line}\n')
    with pytest.raises(ModelError, match=reason):
        read(path)


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read(path)
    path.write_text(" \n")
    with pytest.raises(ModelError, match="has no prompts: write one on each line"):
        read(path)


def test_a_file_that_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a\n" * 20)
    monkeypatch.setattr(prompts, "MAX_PROMPTS", 19)
    with pytest.raises(ModelError, match="has 20 prompts; 19 is the limit"):
        read(path)
    monkeypatch.setattr(prompts, "MAX_BYTES", 30)
    with pytest.raises(ModelError, match="a part of it is enough"):
        read(path)


def test_what_is_no_unicode_is_read_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"caf\xe9\n")
    assert read(path) == (TextPrompt(text="caf\ufffd"),)
