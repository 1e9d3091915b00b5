"""Whether a file is still the one that a model was loaded from. What is served is announced under
the digest of that one.
"""

from __future__ import annotations

import os
from pathlib import Path

from p2p_mesh.errors import ModelError
from p2p_mesh.serve.package.source import files_of

Version = tuple[tuple[int, int, int, int], ...]
"""Of each file: device, inode, bytes, and when it was written, in nanoseconds."""


def version(path: str) -> Version | None:
    """None for a folder, and for what cannot be found."""
    try:
        if not os.path.isfile(path):
            return None
        found = [one.stat() for one in files_of(Path(path))]
    except (OSError, ModelError):
        return None
    return tuple((one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) for one in found)
