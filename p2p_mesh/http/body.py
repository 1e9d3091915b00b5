"""JSON bodies, read strictly: whatever is not plainly right is a RequestError that names it.

Pure. What passes `parse` holds no duplicate key, no NaN, no text that is not Unicode, and can
be written again as it was read, also as msgpack: an integer beyond 64 bits is read as the nearest
float, as most readers of JSON do.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from p2p_mesh.errors import RequestError

MAX_DEPTH = 64
NAME_SHOWN = 200
"""Characters of a client's own field name that an error repeats."""
ALIKE = 0.8
"""How alike an unknown name is to a known one that the error suggests, 0 to 1."""

_LARGE = re.compile(rb"[0-9]{19}|[eE]\+?[0-9]{3}")
"""Stands in every body with a number that is too large for an integer or a float; rarely in
others, and only these are read slowly."""

T = TypeVar("T")
Read = Callable[[Any, str], T]
"""Turns a JSON value into what it means; is told the value's name for the error."""


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in a body."""
    has_large = _LARGE.search(body) is not None
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer if has_large else None,
            parse_float=_float if has_large else None,
        )
    except RequestError:
        raise
    except RecursionError:
        raise RequestError(f"the body is nested deeper than {MAX_DEPTH} levels") from None
    except UnicodeDecodeError:
        raise RequestError("the body is not UTF-8") from None
    except ValueError as error:  # json's own, or an integer of thousands of digits
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RequestError(f"the body must be a JSON object, not {kind(value)}")
    _check(value, has_escapes=b"\\u" in body)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            shown = ascii(name)[1:-1][:NAME_SHOWN]
            raise RequestError(f"the body has {shown} twice", param=shown)
        found[name] = value
    return found


def _constant(name: str) -> None:
    raise RequestError(f"the body is not JSON: {name} is no JSON number")


def _integer(digits: str) -> int | float:
    value = int(digits)
    return value if -(2**63) <= value < 2**64 else _float(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise RequestError(f"the body has a number that is too large: {digits[:40]}")
    return value


def _check(value: dict[str, Any], *, has_escapes: bool) -> None:
    """Refuses too deep a nesting, and half a surrogate pair, which only an escape can bring."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        children = [child for parent in level for child in _children(parent)]
        if has_escapes:
            _check_unicode(children)
        level = [child for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise RequestError(f"the body is nested deeper than {MAX_DEPTH} levels")


def _children(value: dict[str, Any] | list[Any]) -> Iterator[Any]:
    yield from value
    if isinstance(value, dict):
        yield from value.values()


def _check_unicode(values: list[Any]) -> None:
    for value in values:
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise RequestError(
                    "the body holds half a surrogate pair (\\ud800-\\udfff)"
                ) from None


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
    return "an object"


def wrong(name: str, wanted: str, value: Any) -> RequestError:
    return RequestError(f"{name} must be {wanted}, not {_shown(value)}", param=name)


def _shown(value: Any) -> str:
    """A value that fits in an error; of others, what they are."""
    if isinstance(value, bool | int | float):
        return _written(value)
    return "an empty array" if value == [] else kind(value)


def _written(value: Any) -> str:
    """The beginning of a value, as JSON."""
    return f"{json.dumps(value):.40}"


def text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise wrong(name, "a string", value)
    return value


def boolean(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise wrong(name, "true or false", value)
    return value


def array(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise wrong(name, "an array", value)
    return value


def mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(name, "an object", value)
    return value


def integer(low: int, high: int) -> Read[int]:
    """Reads an integer of that range, both ends included."""

    def read(value: Any, name: str) -> int:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        if not is_integer or not low <= value <= high:
            raise wrong(name, f"an integer from {low} to {high}", value)
        return int(value)

    return read


def number(low: float, high: float, *, above: bool = False) -> Read[float]:
    """Reads a number of that range; `above`: greater than `low`, not equal to it."""

    def read(value: Any, name: str) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or (above and value == low):
            ends = f"above {low:g} and up to {high:g}" if above else f"from {low:g} to {high:g}"
            raise wrong(name, f"a number {ends}", value)
        return float(value)

    return read


def word(*allowed: str) -> Read[str]:
    """Reads one of those strings."""

    def read(value: Any, name: str) -> str:
        if not isinstance(value, str) or value not in allowed:
            shown = f"{value!a:.40}" if isinstance(value, str) else _shown(value)
            raise RequestError(f"{name} must be one of {', '.join(allowed)}, not {shown}",
                               param=name)  # fmt: skip
        return value

    return read


def items(read: Read[T], low: int, high: int) -> Read[tuple[T, ...]]:
    """Reads an array of so many, both ends included, and each of them with `read`."""

    def read_all(value: Any, name: str) -> tuple[T, ...]:
        values = array(value, name)
        if not low <= len(values) <= high:
            many = f"at most {high}" if low == 0 else f"{low} to {high}"
            raise RequestError(f"{name} may hold {many}, not {len(values)}", param=name)
        return tuple(read(one, f"{name}[{i}]") for i, one in enumerate(values))

    return read_all


class Fields:
    """The fields of an object. Each is taken by name; what nobody took is refused at the end.

    null counts as absent.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self._where = where
        self._known: set[str] = set()

    def name(self, field: str) -> str:
        """The field's name as an error shows it: `messages[2].role`."""
        return f"{self._where}.{field}" if self._where else field

    def take(self, field: str, read: Read[T]) -> T | None:
        """The field's value, or None where it is absent."""
        self._known.add(field)
        if field not in self._values:
            return None
        return read(self._values.pop(field), self.name(field))

    def require(self, field: str, read: Read[T], hint: str = "") -> T:
        value = self.take(field, read)
        if value is None:
            message = f"{self.name(field)} is missing{f': {hint}' if hint else ''}"
            raise RequestError(message, param=self.name(field))
        return value

    def drop(self, *fields: str) -> None:
        """Accepts fields without effect, whatever they hold."""
        self._known.update(fields)
        for field in fields:
            self._values.pop(field, None)

    def neutral(self, field: str, *values: Any) -> None:
        """Accepts a field that is not honoured, if it asks for nothing: one of `values`."""
        self._known.add(field)
        if field not in self._values:
            return
        value = self._values.pop(field)
        if not any(_same(value, one) for one in values):
            name, wanted = self.name(field), " or ".join(map(_written, values))
            why = f": {_written(value)} is not supported, only {wanted} is"
            raise RequestError(f"{name}{why if values else ' is not supported'}", param=name)

    def end(self) -> None:
        """Refuses what is left."""
        for field in self._values:
            name = self.name(field)[:NAME_SHOWN]
            message = f"{name!a} is not a field that is supported here"
            for known in get_close_matches(field[:NAME_SHOWN], self._known, 1, ALIKE):
                message += f"; did you mean {self.name(known)}?"
            raise RequestError(message, param=name)


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON, where true is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
