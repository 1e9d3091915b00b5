"""What an engine says of itself goes into JSON and metrics, whatever it is."""

from __future__ import annotations

import math
from typing import Any

from p2p_mesh.serve.measures import MOST, shown


def test_numbers_under_good_names_are_shown() -> None:
    assert shown({"expert_hit_rate": 0.5, "expert_bytes": 7}) == {
        "expert_hit_rate": 0.5,
        "expert_bytes": 7,
    }


def test_what_json_or_a_metric_could_not_hold_is_left_out() -> None:
    strange: dict[Any, Any] = {
        "nan": math.nan, "infinite": math.inf, "text": "1", "A name": 1.0, "": 1.0, 3: 1.0,
        "a" * 65: 1.0, "line\n": 1.0, "huge": 10**400, "negative": -(10**400), "yes": True,
    }  # fmt: skip
    assert shown(strange) == {}


def test_no_more_than_so_many_are_shown() -> None:
    assert len(shown({f"m{number}": 1.0 for number in range(MOST + 10)})) == MOST
