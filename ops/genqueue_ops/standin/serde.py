"""Typed fields of JSON, refused in the words of Rust's serde, as TGI refuses them."""

import json
from collections.abc import Callable
from typing import Any

_U32_MAX = 2**32 - 1
_U64_MAX = 2**64 - 1
_I32_MAX = 2**31 - 1


class Rejection(Exception):
    """The HTTP layer refuses the request before TGI sees it: plain text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Fields:
    """Reads typed fields of a JSON object, refusing in serde's words.

    Args:
        payload: the object.
        expected: what serde calls it, for the message when it is none.
        path: where it lies in the body, for messages; "" at the top.
    """

    def __init__(self, payload: Any, expected: str, path: str = "") -> None:
        if not isinstance(payload, dict):
            raise wrong_type(payload, expected, path)
        self._payload = payload
        self._path = path

    def get(
        self,
        name: str,
        kind: Callable[[Any, str], Any],
        *,
        required: bool = False,
        default: Any = None,
        null: bool = False,
    ) -> Any:
        """A field's value; ``null`` says whether JSON's null is the same as absent."""
        path = f"{self._path}.{name}" if self._path else name
        if name not in self._payload:
            if required:
                raise undeserializable(f"missing field `{name}`", self._path)
            return default
        value = self._payload[name]
        if value is None and null:
            return default
        return kind(value, path)


def undeserializable(message: str, path: str) -> Rejection:
    """axum's 422 for JSON that does not fit the type."""
    where = f"{path}: " if path else ""
    return Rejection(
        422, f"Failed to deserialize the JSON body into the target type: {where}{message} at line 1 column 1"
    )


def wrong_type(value: Any, expected: str, path: str) -> Rejection:
    """serde's "invalid type"."""
    return undeserializable(f"invalid type: {_serde_name(value)}, expected {expected}", path)


def _serde_name(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return f"boolean `{str(value).lower()}`"
        case int():
            return f"integer `{value}`"
        case float():
            return f"floating point `{value}`"
        case str():
            return f"string {json.dumps(value, ensure_ascii=False)}"
        case list():
            return "sequence"
        case _:
            return "map"


def string(value: Any, path: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise wrong_type(value, "a string", path)
    return value


def boolean(value: Any, path: str) -> bool:
    """A boolean."""
    if not isinstance(value, bool):
        raise wrong_type(value, "a boolean", path)
    return value


def f32(value: Any, path: str) -> float:
    """A number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(value, "f32", path)
    return float(value)


def _integer(value: Any, path: str, name: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(value, name, path)
    if not low <= value <= high:
        raise undeserializable(f"invalid value: integer `{value}`, expected {name}", path)
    return value


def u32(value: Any, path: str) -> int:
    """An integer from 0 to 2³² - 1."""
    return _integer(value, path, "u32", 0, _U32_MAX)


def usize(value: Any, path: str) -> int:
    """An integer from 0 to 2⁶⁴ - 1."""
    return _integer(value, path, "usize", 0, _U64_MAX)


def u64(value: Any, path: str) -> int:
    """An integer from 0 to 2⁶⁴ - 1."""
    return _integer(value, path, "u64", 0, _U64_MAX)


def i32(value: Any, path: str) -> int:
    """A 32-bit integer."""
    return _integer(value, path, "i32", -_I32_MAX - 1, _I32_MAX)


def strings(value: Any, path: str) -> tuple[str, ...]:
    """A list of strings."""
    if not isinstance(value, list):
        raise wrong_type(value, "a sequence", path)
    return tuple(string(item, f"{path}[{place}]") for place, item in enumerate(value))


def grammar(value: Any, path: str) -> dict[str, Any]:
    """A grammar; its value is not looked at further."""
    fields = Fields(value, "internally tagged enum GrammarType", path)
    kind = fields.get("type", string, required=True)
    if kind not in ("json", "json_object", "json_schema", "regex"):
        raise undeserializable(
            f"unknown variant `{kind}`, expected one of `json`, `json_object`, `json_schema`, `regex`", path
        )
    if "value" not in value:
        raise undeserializable("missing field `value`", path)
    if kind == "regex":
        string(value["value"], path)
    else:
        Fields(value["value"], "a map", path)
    return dict(value)
