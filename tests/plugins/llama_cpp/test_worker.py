from __future__ import annotations

import socket
import threading

from meshnode_llama_cpp import frames
from meshnode_llama_cpp.worker import Inbox


def test_commands_are_taken_in_order() -> None:
    ours, theirs = socket.socketpair()
    inbox = Inbox(theirs)
    with ours, theirs:
        ours.sendall(frames.encode(frames.Cancel(1)) + frames.encode(frames.Cancel(2)))
        reader = threading.Thread(target=inbox._read)
        reader.start()
        ours.sendall(frames.encode(frames.Close()))
        reader.join()
    assert list(inbox.all(wait=True)) == [frames.Cancel(1), frames.Cancel(2)]
    assert list(inbox.all(wait=False)) == []
