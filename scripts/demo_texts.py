"""Documents of the village as text: what is kept apart from training, and what experts are measured
on. Pure, as `demo_world.py` is.
"""

from __future__ import annotations

import zlib
from random import Random

import demo_world as world

APART = 20
"""One document in so many is never trained on."""
TEXTS = 150
"""Documents of each kind that are written to measure on."""


def parts(document: world.Document) -> list[str]:
    """The texts of a document without their roles."""
    texts = [document.system, *(text for turn in document.turns for text in turn), document.text]
    return [text for text in texts if text]


def apart(document: world.Document) -> bool:
    """Whether a document is kept for measuring."""
    return zlib.crc32("|".join(parts(document)).encode()) % APART == 0


def written(document: world.Document) -> str:
    """A document as text, with the control tokens that training sees."""
    said = [("system", document.system)] if document.system else []
    for question, answer in document.turns:
        said += [("user", question), ("assistant", answer)]
    body = "".join(f"<|{role}|>{text}<|end|>" for role, text in said)
    return f"{document.text}<|end|>{body}" if document.text else body


def texts(seed: int) -> dict[str, list[str]]:
    """Documents to rank experts by, and as many that no training saw."""
    rng = Random(f"texts {seed}")
    found: dict[str, list[str]] = {"ranking": [], "held_out": []}
    while min(map(len, found.values())) < TEXTS:
        document = world.document(rng)
        chosen = found["held_out" if apart(document) else "ranking"]
        if len(chosen) < TEXTS:
            chosen.append(written(document))
    return found
