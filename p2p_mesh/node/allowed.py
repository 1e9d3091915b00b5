"""What may be fetched, by the word of this node's user: `--fetch-allow`, and what was named."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatchcase

from p2p_mesh.core.package import Manifest, PackageRef
from p2p_mesh.core.reference import read_hub
from p2p_mesh.errors import ModelError
from p2p_mesh.settings import Settings

_DIGEST = re.compile(r"[0-9a-f]{8,64}")


def check_allowed(settings: Settings, ref: PackageRef, manifest: Manifest) -> None:
    """Raises ModelError for a package that demand alone wants, and that nobody allowed."""
    names = (manifest.model_id, ref.hub)
    digests = (ref.manifest, manifest.source.sha256)
    if not _is_named(settings.fetch_allow, names, digests):
        raise ModelError(
            f"nobody here asked for {manifest.model_id} by name, and --fetch-allow does not name "
            "it: its parts are not fetched"
        )


def may_ask_hub(settings: Settings, ref: PackageRef) -> bool:
    """Whether the user named the repository that a peer says a package is in, or the package: else
    anybody could have anything downloaded here. What a manifest says of itself does not count.
    """
    repo = _repository(ref.hub)
    named = {_repository(one) for one in (*settings.model, *settings.standby, *settings.share)}
    if repo and repo in named:
        return True
    return _is_named(settings.fetch_allow, (ref.hub, repo), (ref.manifest,))


def _is_named(allowed: Iterable[str], names: Iterable[str], digests: Iterable[str]) -> bool:
    """Whether one of these patterns is of a name, or is how a digest begins."""
    return any(
        any(name and fnmatchcase(name, one) for name in names)
        or (_DIGEST.fullmatch(one) and any(digest.startswith(one) for digest in digests))
        for one in allowed
    )


def _repository(reference: str) -> str:
    """`hf://ns/repo`, without a revision; empty for what is none."""
    with suppress(ModelError):
        return f"hf://{read_hub(reference).repo}"
    return ""
