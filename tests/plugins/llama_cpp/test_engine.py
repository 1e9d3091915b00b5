from __future__ import annotations

import pytest
import trio
import trio.testing
from meshnode_llama_cpp.engine import Words

from p2p_mesh.core.records import Delta
from p2p_mesh.errors import EngineDied


async def test_an_answer_ends_with_its_last_word() -> None:
    words = Words(2)
    words.say(Delta(text="a"))
    words.say(Delta(text="b"), last=True)
    assert [delta async for delta in words] == [Delta(text="a"), Delta(text="b")]
    assert await words.next() is None


async def test_an_error_is_raised_where_the_answer_is_read() -> None:
    words = Words(2)
    words.say(Delta(text="a"))
    words.say(EngineDied("gone"), last=True)
    assert (await anext(words)).text == "a"
    with pytest.raises(EngineDied, match="gone"):
        await anext(words)


async def test_a_reader_is_woken(autojump_clock: trio.testing.MockClock) -> None:
    words = Words(2)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def read() -> None:
            assert await words.next() == Delta(text="a")

        await trio.testing.wait_all_tasks_blocked()
        words.say(Delta(text="a"), last=True)


def test_more_words_than_asked_for_are_refused() -> None:
    words = Words(1)
    words.say(Delta(text="a"))
    with pytest.raises(ValueError, match="more words"):
        words.say(Delta(text="b"))


async def test_what_is_awaited_is_offered_but_for_the_last() -> None:
    words, taken, read = Words(9), list[str](), list[str]()

    def take(delta: Delta) -> bool:
        taken.append(delta.text)
        return delta.text != "refused"

    words.offer(take)
    words.say(Delta(text="nobody waits"))
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def reader() -> None:
            read.extend([delta.text async for delta in words])

        await trio.testing.wait_all_tasks_blocked()
        words.say(Delta(text="a"))
        words.say(Delta(text="b"))
        words.say(Delta(text="refused"))
        words.say(Delta(text="after it"))
        await trio.testing.wait_all_tasks_blocked()
        words.say(Delta(text="last"), last=True)
    assert taken == ["a", "b", "refused"]
    assert read == ["nobody waits", "refused", "after it", "last"]
