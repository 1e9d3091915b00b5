"""What of an engine's measures is shown: an engine is a plugin's, and what it says goes into JSON
and into metrics.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice

MOST = 64
LARGEST = 2**53
"""Numbers beyond it are not exact in all readers of JSON, and integers may not fit a float."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def shown(measures: Mapping[str, float]) -> dict[str, float]:
    """Those that are numbers, under names that a metric may have; MOST of them."""
    good = ((name, value) for name, value in measures.items() if _is_good(name, value))
    return dict(islice(good, MOST))


def _is_good(name: object, value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    is_named = isinstance(name, str) and _NAME.fullmatch(name) is not None
    return is_named and -LARGEST <= value <= LARGEST
