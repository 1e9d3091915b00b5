"""What the two sides of a lease may say, and when."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode_skippy import lease
from meshnode_skippy.lease import (
    Broken,
    Commit,
    Committed,
    Loaded,
    LoadStage,
    Prepare,
    Prepared,
    Progress,
    Renew,
    Terms,
    Welcome,
)

from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.core.package import PackageRef
from p2p_mesh.core.wire import ErrorMessage, encode
from p2p_mesh.errors import EngineDied, RemoteError, Unavailable

REF = PackageRef(manifest=Digest("a" * 64), pieces=Digest("b" * 64))
PREPARE = Prepare(
    run=bytes(16), secret=bytes(16), stage=1, stages=3, model="m", package=REF,
    start=3, end=6, context=512, slots=2,
)  # fmt: skip
COMMIT = Commit(epoch=1, next=PeerId("next"), stage=2, secret=bytes(16))


def changed(**fields: Any) -> bytes:
    """A `prepare` with other fields, whether they are allowed or not."""
    plain = msgspec.msgpack.decode(encode(PREPARE))
    return msgspec.msgpack.encode({**plain, **fields})


def test_a_prepare_travels() -> None:
    assert lease.read_prepare(encode(PREPARE)) == PREPARE


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"end": 3}, "none"),
        ({"start": 7}, "none"),
        ({"stage": 3}, "stage 3 of 3"),
        ({"stage": 0}, "cannot begin"),
        ({"start": 0}, "cannot begin"),
        ({"context": 2**30, "slots": 4}, "too many"),
        ({"context": 0}, "malformed"),
        ({"slots": 257}, "malformed"),
        ({"end": 10**9}, "malformed"),
        ({"stages": 10**9}, "malformed"),
        ({"run": b"short"}, "malformed"),
        ({"secret": bytes(17)}, "malformed"),
        ({"kv_type": "f64"}, "malformed"),
        ({"wire": "q2"}, "malformed"),
        ({"package": {"manifest": "../..", "pieces": "b" * 64}}, "malformed"),
        ({"type": "load"}, "malformed"),
    ],
)
def test_what_no_stage_could_be_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(RemoteError, match=reason):
        lease.read_prepare(changed(**fields))


@pytest.mark.parametrize("order", [LoadStage(), COMMIT, Renew()])
def test_orders_travel(order: Any) -> None:
    assert lease.read_order(encode(order)) == order


@pytest.mark.parametrize(
    "report",
    [Progress(share=0.5), Prepared(memory_bytes=7), Loaded(numerics="n"), Committed(epoch=2),
     Broken(epoch=2, reason="gone")],
)  # fmt: skip
def test_reports_travel(report: Any) -> None:
    assert lease.read_report(encode(report)) == report


def test_an_error_takes_the_place_of_a_report() -> None:
    with pytest.raises(EngineDied, match="killed"):
        lease.read_report(encode(ErrorMessage.of(EngineDied("killed"))))


def test_a_link_is_welcome_or_is_not() -> None:
    lease.read_welcome(encode(Welcome()))
    with pytest.raises(Unavailable, match="not loaded"):
        lease.read_welcome(encode(ErrorMessage.of(Unavailable("not loaded"))))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_remote_error(data: bytes) -> None:
    for read in (lease.read_prepare, lease.read_order, lease.read_report, lease.read_welcome):
        with pytest.raises(RemoteError):
            read(data)


def loaded() -> Terms:
    terms = Terms()
    terms.report(Prepared(memory_bytes=7))
    terms.order(LoadStage())
    terms.report(Loaded(numerics="n"))
    return terms


def test_a_lease_goes_from_prepared_to_running() -> None:
    terms = Terms()
    terms.report(Progress(share=0.5))
    assert (terms.phase, terms.share) == ("preparing", 0.5)
    terms.report(Prepared(memory_bytes=7))
    assert (terms.phase, terms.memory_bytes) == ("prepared", 7)
    terms.order(LoadStage())
    assert (terms.phase, terms.share) == ("loading", 0.0)
    terms.report(Loaded(numerics="n"))
    assert (terms.phase, terms.loaded.numerics) == ("loaded", "n")
    terms.order(COMMIT)
    assert (terms.phase, terms.epoch) == ("committing", 1)
    terms.report(Committed(epoch=1))
    assert terms.phase == "running"


def test_a_running_stage_is_joined_anew() -> None:
    terms = loaded()
    terms.order(COMMIT)
    terms.report(Committed(epoch=1))
    terms.report(Broken(epoch=1))
    terms.order(msgspec.structs.replace(COMMIT, epoch=2))
    terms.report(Committed(epoch=1))
    phases = [terms.phase]
    terms.report(Committed(epoch=2))
    assert [*phases, terms.phase] == ["committing", "running"]


@pytest.mark.parametrize("order", [LoadStage(), COMMIT])
def test_orders_have_their_time(order: Any) -> None:
    with pytest.raises(RemoteError, match="out of turn, while the stage was preparing"):
        Terms().order(order)


def test_an_epoch_does_not_come_again() -> None:
    terms = loaded()
    terms.order(COMMIT)
    with pytest.raises(RemoteError, match="epoch 1 is over"):
        terms.order(COMMIT)


@pytest.mark.parametrize("report", [Prepared(), Loaded()])
def test_reports_have_their_time(report: Any) -> None:
    with pytest.raises(RemoteError, match="out of turn, while the stage was loaded"):
        loaded().report(report)


def test_a_long_reason_is_shortened() -> None:
    assert len(lease.words(Unavailable("x" * 5000))) == 1024
