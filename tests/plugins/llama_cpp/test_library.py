from __future__ import annotations

from typing import Any

from meshnode_llama_cpp.library import complaint, devices, numerics, start


def line(**changed: Any) -> str:
    return numerics(**{"device": "cpu", "rows": 48, "kv_type": "f16", "exact": True, **changed})


def test_numerics_name_what_floating_point_depends_on() -> None:
    assert line().startswith("llama.cpp ")
    assert line().endswith(" kv=f16 rows=48 exact cpu")
    assert len({line(), line(exact=False), line(kv_type="q8_0"), line(rows=512)}) == 4


def test_numerics_fit_an_announcement() -> None:
    assert len(line(device="x" * 300)) <= 256


def test_devices_have_names() -> None:
    start()
    assert all(device.name and device.free for device in devices())


def test_no_complaint_is_said_so() -> None:
    complaint()
    assert complaint() == "it says nothing"
