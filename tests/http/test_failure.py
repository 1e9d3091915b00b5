import json

import pytest

from p2p_mesh.errors import EngineDied, Loading, MeshError, Overloaded, RequestError, UnknownModel
from p2p_mesh.http.failure import INTERNAL, Failure, failure


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (RequestError("no"), 400, "invalid_request_error"),
        (UnknownModel("no"), 404, "invalid_request_error"),
        (Overloaded("no"), 429, "rate_limit_error"),
        (EngineDied("no"), 503, "server_error"),
        (MeshError("no"), 500, "server_error"),
    ],
)
def test_error_has_status_and_type(error: MeshError, status: int, kind: str) -> None:
    found = failure(error)
    assert found.status == status
    assert found.body()["error"] == {
        "message": "no",
        "type": kind,
        "param": None,
        "code": error.code,
    }


def test_param_is_kept() -> None:
    assert failure(RequestError("no", param="top_p")).body()["error"]["param"] == "top_p"


@pytest.mark.parametrize(
    ("wait", "header"), [(None, "1"), (0.0, "1"), (0.2, "1"), (2.1, "3"), (60.0, "60")]
)
def test_retry_after_is_whole_seconds(wait: float | None, header: str) -> None:
    response = failure(Loading("soon", retry_after=wait)).response()
    assert response.headers["retry-after"] == header


def test_retry_after_only_where_it_helps() -> None:
    assert "retry-after" not in failure(RequestError("no", retry_after=3)).response().headers


def test_response_is_json() -> None:
    response = Failure(403, "forbidden_host", "no", headers={"x-more": "1"}).response()
    assert response.status_code == 403
    assert response.headers["x-more"] == "1"
    assert json.loads(bytes(response.body))["error"]["type"] == "permission_error"


def test_internal_says_nothing_of_the_reason() -> None:
    assert INTERNAL.body()["error"]["code"] == "internal_error"
