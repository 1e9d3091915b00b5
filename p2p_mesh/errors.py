"""Every exception of meshnode, and whose fault each one is.

    MeshError
    ├── LocalError             our user, or a client of ours, asked for what cannot be
    │   ├── SettingsError      a flag, a token, a settings file; the command ends with code 2
    │   ├── ModelError         a model file that nobody could load
    │   ├── RequestError       a client's request; names the field
    │   │   └── ContextExceeded   a prompt that is longer than the model's context
    │   └── UnknownModel       no node of the mesh has it
    ├── RemoteError            a peer broke a protocol
    │   └── Refused            a peer, by the rules, wants nothing of us (or we of it)
    └── Unavailable            nobody's fault; another try may work
        ├── Overloaded         the queue is full
        ├── Loading            the model is known, and is being loaded
        ├── EngineDied         the engine's process ended in the middle of something
        ├── HandedOver         another node's expert shard has more of what the prompt needs
        └── BrokenOff          an answer that had begun, and that nobody could go on with

`code` is what travels, in error frames (specs/README.md) and in the `code` of an OpenAI error.
`status` is a hint: only the HTTP front turns an error into a response.
"""

from __future__ import annotations

from typing import ClassVar


class MeshError(Exception):
    """Base of all the others; `str(error)` says what happened and what to do about it."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.retry_after = retry_after


class LocalError(MeshError):
    code = "bad_use"
    status = 400


class SettingsError(LocalError):
    code = "bad_settings"


class ModelError(LocalError):
    code = "bad_model"


class RequestError(LocalError):
    code = "invalid_value"


class ContextExceeded(RequestError):
    code = "context_length_exceeded"


class UnknownModel(LocalError):
    code = "model_not_found"
    status = 404


class RemoteError(MeshError):
    code = "bad_peer"
    status = 502


class Refused(RemoteError):
    """`reason` names the rule in one word: forged, borrowed, replayed, expired, revoked."""

    code = "refused"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "refused",
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, param=param, retry_after=retry_after)
        self.reason = reason


class Unavailable(MeshError):
    code = "unavailable"
    status = 503


class Overloaded(Unavailable):
    code = "overloaded"
    status = 429


class Loading(Unavailable):
    code = "loading"


class EngineDied(Unavailable):
    code = "engine_died"


class HandedOver(Unavailable):
    """`param` is that node's peer id. Only said of a request that asks for it (`weigh`)."""

    code = "handed_over"


class BrokenOff(Unavailable):
    code = "answer_broken_off"


_BY_CODE: dict[str, type[MeshError]] = {
    kind.code: kind
    for kind in (
        LocalError, SettingsError, ModelError, RequestError, ContextExceeded, UnknownModel,
        RemoteError, Refused, Unavailable, Overloaded, Loading, EngineDied, HandedOver, BrokenOff,
    )
}  # fmt: skip


def from_code(
    code: str, message: str, *, param: str | None = None, retry_after: float | None = None
) -> MeshError:
    """The error that a peer or an engine named; a code we do not know is a RemoteError."""
    kind = _BY_CODE.get(code, RemoteError)
    return kind(message, param=param, retry_after=retry_after)
