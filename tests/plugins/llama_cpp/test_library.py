from __future__ import annotations

from meshnode_llama_cpp.library import complaint, devices, numerics, start


def test_numerics_name_what_floating_point_depends_on() -> None:
    line = numerics("cpu", 512, exact=False)
    assert line.startswith("llama.cpp ")
    assert line.endswith(" kv=f16/unified attention=auto rows=512 cpu")
    assert numerics("cpu", 512, exact=True) != line


def test_numerics_fit_an_announcement() -> None:
    assert len(numerics("x" * 300, 512, exact=False)) <= 256


def test_devices_have_names() -> None:
    start()
    assert all(devices())


def test_no_complaint_is_said_so() -> None:
    complaint()
    assert complaint() == "it says nothing"
