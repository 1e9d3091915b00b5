"""When an invite ends."""

import json
from datetime import UTC, datetime

import pytest

from p2p_mesh.cli.invite import read_time
from p2p_mesh.cli.main import execute
from p2p_mesh.errors import SettingsError
from tests.cli.conftest import Port

NOW = datetime(2026, 11, 21, tzinfo=UTC)
DAY = 86_400


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45m", 2700), ("12h", DAY // 2), ("30d", 30 * DAY), ("2w", 14 * DAY),
     ("2026-11-22", DAY), ("2026-11-21T01:00:00+00:00", 3600)],
)  # fmt: skip
def test_times(text: str, seconds: int) -> None:
    assert read_time(text, NOW, "--until") == int(NOW.timestamp()) + seconds


@pytest.mark.parametrize("text", ["", "30", "d", "30y", "-1d", "tomorrow", "1e9d"])
def test_what_is_no_time_is_refused_with_examples(text: str) -> None:
    with pytest.raises(SettingsError, match="write 30d"):
        read_time(text, NOW, "--until")


def test_past_is_refused() -> None:
    with pytest.raises(SettingsError, match="past"):
        read_time("2026-11-20", NOW, "--until")


def test_limits_reach_the_node(port: Port, capsys: pytest.CaptureFixture[str]) -> None:
    port.answers["/api/invites"] = [{"invite": "mn1_x"}]
    words = ["--uses", "3", "--join-by", "2100-01-01", "--json", "--data-dir", port.directory]
    assert execute(["invite", *words]) == 0
    asked = {"role": "member", "until": None, "uses": 3, "join_by": 4_102_444_800}
    assert port.asked == [("/api/invites", asked)]
    assert json.loads(capsys.readouterr().out) == {"invite": "mn1_x", **asked}
