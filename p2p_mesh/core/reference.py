"""What a reference to a model names: a repository of a hub, or one of the files of a split GGUF."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from p2p_mesh.errors import ModelError


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository of a hub, at a revision."""

    repo: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.revision}"

    @property
    def is_fixed(self) -> bool:
        """It names a commit, which can never change."""
        return re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None


_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,95})"
_HUB = re.compile(rf"hf://({_PART}/{_PART})(?:[@:]([A-Za-z0-9._/-]{{1,128}}))?/?")


def is_hub(reference: str) -> bool:
    return reference.startswith("hf://")


def read_hub(reference: str) -> HubName:
    """What `hf://ns/repo`, `hf://ns/repo@rev` or `hf://ns/repo:rev` names. Raises ModelError."""
    match = _HUB.fullmatch(reference)
    if match is None or ".." in reference or (match[2] or "").startswith("/"):
        raise ModelError(f"{reference[:256]!r} is no hf://namespace/repository[@revision]")
    return HubName(match[1], match[2] or "main")


def split_name(name: str) -> tuple[str, int, int] | None:
    """What a file's name says of a model in several files: its stem, which of them, of how many."""
    match = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})\.gguf", name)
    return (match[1], int(match[2]), int(match[3])) if match else None


def split_names(name: str) -> Iterator[str]:
    """The names of all files of the model of which this is one."""
    parts = split_name(name)
    if parts is None:
        yield name
        return
    stem, _, count = parts
    for number in range(1, count + 1):
        yield f"{stem}-{number:05}-of-{count:05}.gguf"
