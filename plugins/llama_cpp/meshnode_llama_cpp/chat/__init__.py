"""Chats: what a model reads of messages and tools, and what it means by the text that it writes.

messages, media, tools     what a client sent, as a template takes it
format                     how a family of models writes reasoning and calls, told from a
                           template's text
scan, machine, marked,     from that writing to content, reasoning and calls, piece by piece
harmony, values
grammar                    from what is demanded to a grammar of that writing
"""

from __future__ import annotations

from meshnode_llama_cpp.chat.machine import Grown, Parser

__all__ = ["Grown", "Parser"]
