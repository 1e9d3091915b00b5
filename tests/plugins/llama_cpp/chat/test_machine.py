from __future__ import annotations

from meshnode_llama_cpp.chat import Grown, Parser
from meshnode_llama_cpp.chat.machine import Plain


def test_a_plain_answer_is_content_at_once() -> None:
    parser: Parser = Plain()
    assert parser.push("a <tool_call>") == Grown(text="a <tool_call>")
    assert parser.push("\n") == Grown(text="\n")
    assert parser.finish() == Grown()
    assert not parser.reasoning
    assert not parser.done
