"""Request bodies decoded as the reference's clients expect: JSON by the rules of Go.

Only the first JSON value is read. Field names match case-insensitively, the last of several wins,
`null` is the same as absent, unknown fields are ignored. Integers have ranges and no fraction.
Broken UTF-8 and lone surrogates become U+FFFD. Source: HTTP API, Body decoding.

A body type is a msgspec struct; its annotations say what each field takes (see `schema`).
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from typing import Any, Generic, NoReturn, TypeVar
from urllib.parse import parse_qsl

import msgspec

from wkhost.api.base64_text import IllegalBase64Error, decode_base64
from wkhost.link.contract import Subscriber
from wkhost.types import MAX_STRING_BYTES

T = TypeVar("T")
Convert = Callable[[Any], Any]

MAX_VALUES = 500_000
"""Most values in one body, counted roughly by separators. Without it a body of 10 MB that is all
commas takes 600 MB and keeps every other request waiting for seconds."""
_SEPARATORS = (b",", b"[", b"{")
_BLANKS = " \t\r\n"
_SURROGATE = re.compile("[\ud800-\udfff]")
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_LITERALS = ("true", "false", "null", "-")
_INT64_LIMIT = 2**63
_GO_INTEGERS = {2**8: "uint8", 2**32: "uint32", 2**64: "uint64", _INT64_LIMIT: "int"}


class DecodeError(Exception):
    """The body cannot be read; the text is what the reference's decoder would say."""


class Number(str):
    """A JSON number as written."""

    __slots__ = ()


class Pairs(list[tuple[str, Any]]):
    """A JSON object as written: order and repeated names kept."""

    __slots__ = ()


def _replace_bytes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("wkhost-replace", _replace_bytes)


def _refuse_constant(name: str) -> NoReturn:
    raise DecodeError(f"invalid character '{name.lstrip('-')[0]}' looking for beginning of value")


_read_value = json.JSONDecoder(
    parse_int=Number,
    parse_float=Number,
    parse_constant=_refuse_constant,
    object_pairs_hook=Pairs,
).raw_decode


def first_value(body: bytes | bytearray) -> Any:
    """Return the first JSON value: Pairs, list, str, Number, bool or None.

    Raises: DecodeError.
    """
    text = body.decode("utf-8", "wkhost-replace").lstrip(_BLANKS)
    if not text:
        raise DecodeError("EOF")
    try:
        return _read_value(text)[0]
    except json.JSONDecodeError as error:
        raise DecodeError(_syntax_text(text, error)) from None
    except RecursionError:
        raise DecodeError("exceeded max depth") from None


def _syntax_text(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos :].rstrip(_BLANKS)
    cut = any(rest and literal.startswith(rest) for literal in _LITERALS)
    if not rest or cut or error.msg.startswith("Unterminated string"):
        return "unexpected EOF"
    return f"invalid character {rest[0]!r} in JSON: {error.msg}"


def compact_json(value: Any) -> str:
    """Write a value of `first_value` without blanks, numbers as they were written."""
    kind = type(value)
    if kind is Pairs:
        members = [f"{_quoted(key)}:{compact_json(item)}" for key, item in value]
        return "{" + ",".join(members) + "}"
    if kind is list:
        return "[" + ",".join([compact_json(item) for item in value]) + "]"
    if kind is Number:
        return str(value)
    return _quoted(value) if kind is str else json.dumps(value)


def _quoted(text: str) -> str:
    return json.dumps(_clean(text), ensure_ascii=False)


def _clean(text: str) -> str:
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


class BodyDecoder(Generic[T]):
    """Decodes bodies and query strings into one struct type."""

    def __init__(self, body_type: type[T]) -> None:
        info = msgspec.inspect.type_info(body_type)
        assert isinstance(info, msgspec.inspect.StructType)
        self.type = body_type
        self._name = body_type.__name__
        self._convert = _struct_converter(info, self._name, "")
        self._numeric = frozenset(f.encode_name for f in info.fields if _is_integer(f.type))

    def decode(self, body: bytes | bytearray) -> T:
        """Raises: DecodeError."""
        if len(body) > MAX_VALUES and sum(map(body.count, _SEPARATORS)) > MAX_VALUES:
            raise DecodeError(f"more than {MAX_VALUES} values")
        value = first_value(body)
        if value is None:
            return self.type()
        if type(value) is not Pairs:
            raise DecodeError(
                f"json: cannot unmarshal {_kind(value)} into Go value of type {self._name}"
            )
        try:
            result: T = self._convert(value)
        except RecursionError:
            raise DecodeError("exceeded max depth") from None
        return result

    def decode_query(self, query: bytes) -> T:
        """Decode a query string; the first of repeated names counts. Raises: DecodeError."""
        values: dict[str, str] = {}
        for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
            values.setdefault(name, value)
        numeric = self._numeric
        pairs = Pairs(
            (name, Number(value) if name in numeric else value)
            for name, value in values.items()
            if value
        )
        result: T = self._convert(pairs)
        return result


# --- converters: a value of `first_value` -> a field's value -----------------------------------


def _kind(value: Any) -> str:
    match value:
        case Number():
            return f"number {value[:40]}"
        case str():
            return "string"
        case bool():
            return "bool"
        case Pairs():
            return "object"
        case _:
            return "array"


def _mismatch(value: Any, path: str, go_type: str) -> DecodeError:
    return DecodeError(
        f"json: cannot unmarshal {_kind(value)} into Go struct field {path} of type {go_type}"
    )


def _is_integer(info: msgspec.inspect.Type) -> bool:
    return isinstance(_bare(info), msgspec.inspect.IntType)


def _bare(info: msgspec.inspect.Type) -> msgspec.inspect.Type:
    return info.type if isinstance(info, msgspec.inspect.Metadata) else info


def _converter(info: msgspec.inspect.Type, root: str, path: str) -> Convert:
    match _bare(info):
        case msgspec.inspect.StrType():
            return _string_converter(f"{root}.{path}")
        case msgspec.inspect.IntType(ge=low, le=high):
            lowest = -_INT64_LIMIT if low is None else int(low)
            widest = _INT64_LIMIT if low is None else 2**64
            highest = widest - 1 if high is None else int(high)
            return _integer_converter(f"{root}.{path}", lowest, highest)
        case msgspec.inspect.BoolType():
            return _flag_converter(f"{root}.{path}")
        case msgspec.inspect.BytesType():
            return _payload_converter(f"{root}.{path}")
        case msgspec.inspect.ListType(item_type=item):
            return _list_converter(item, root, path)
        case msgspec.inspect.StructType() as struct:
            return _struct_converter(struct, root, path)
        case other:
            raise TypeError(f"{root}.{path}: no way to decode {other}")


def _struct_converter(info: msgspec.inspect.StructType, root: str, path: str) -> Convert:
    cls = info.cls
    fields: dict[str, tuple[str, Convert]] = {}
    for field in info.fields:
        inner = f"{path}.{field.encode_name}" if path else field.encode_name
        fields[field.encode_name] = (field.name, _converter(field.type, root, inner))
    of_string = cls is Subscriber

    def convert(value: Any) -> Any:
        if type(value) is not Pairs:
            if of_string and type(value) is str:
                return cls(_clean(value))
            raise _mismatch(value, f"{root}.{path}", cls.__name__)
        found: dict[str, Any] = {}
        for key, item in value:
            if item is not None:
                field = fields.get(key) or fields.get(_folded(key))
                if field is not None:
                    found[field[0]] = field[1](item)
        if of_string and "uid" not in found:
            found["uid"] = ""
        return cls(**found)

    return convert


def _folded(name: str) -> str:
    """Fold a field name as the reference does: ASCII case, long s and the Kelvin sign."""
    return name.lower().replace("ſ", "s")


def _string_converter(path: str) -> Convert:
    def convert(value: Any) -> str:
        if type(value) is not str:
            raise _mismatch(value, path, "string")
        if len(value) * 4 > MAX_STRING_BYTES:
            value = _clean(value)
            if len(value.encode()) > MAX_STRING_BYTES:
                raise DecodeError(f"{path}: expected at most {MAX_STRING_BYTES} bytes")
        return value if value.isascii() else _clean(value)

    return convert


def _integer_converter(path: str, low: int, high: int) -> Convert:
    def convert(value: Any) -> int:
        if type(value) is Number and _INTEGER.fullmatch(value):
            number = int(value)
            if low <= number <= high:
                return number
        raise _mismatch(value, path, _GO_INTEGERS[high + 1])

    return convert


def _flag_converter(path: str) -> Convert:
    """0/1 or a boolean; of the numbers only 1 means true."""
    integer = _integer_converter(path, -_INT64_LIMIT, _INT64_LIMIT - 1)

    def convert(value: Any) -> bool:
        return value if type(value) is bool else bool(integer(value) == 1)

    return convert


def _payload_converter(path: str) -> Convert:
    """Base64 text, an array of byte numbers, or an object that is kept as compact JSON."""
    byte = _integer_converter(path, 0, 255)

    def convert(value: Any) -> bytes:
        if type(value) is str:
            try:
                return decode_base64(value)
            except IllegalBase64Error as error:
                raise DecodeError(str(error)) from None
        if type(value) is list:
            return bytes([0 if item is None else byte(item) for item in value])
        if type(value) is Pairs:
            return compact_json(value).encode()
        raise _mismatch(value, path, "[]uint8")

    return convert


def _list_converter(item: msgspec.inspect.Type, root: str, path: str) -> Convert:
    element = _converter(item, root, path)
    zero: Callable[[], Any] = str
    if isinstance(item, msgspec.inspect.StructType):
        zero = lambda: element(Pairs())  # noqa: E731 - a factory like `str`

    def convert(value: Any) -> list[Any]:
        if type(value) is not list:
            raise _mismatch(value, f"{root}.{path}", "[]string")
        return [zero() if entry is None else element(entry) for entry in value]

    return convert
