"""Canonical JSON: one value, one sequence of bytes (RFC 8785, without floats).

A record is named by the digest of its bytes, so a value must have exactly one
encoding, and bytes that are not that encoding are no record. Floats are left out:
their printing is the one hard part of RFC 8785, and records keep exact bits.
"""

import json
import re
from typing import NoReturn

LIMIT = 16 << 20  # bytes of one value
DEPTH = 32  # containers inside each other
CONTAINERS = 1 << 17  # brackets in the bytes: 16 MiB of "[]" would take 350 MB of memory
SAFE = 2**53  # integers beyond it are not exact in the readers of other languages
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_LONG = re.compile(rb"(?:^|[\[,:])-?[0-9]{16}")  # where an integer of 2^53 may stand


def encode(value: object) -> bytes:
    """The canonical bytes of a value; keys are sorted by their UTF-16 code units.

    Raises ValueError for what has no canonical form here: floats, integers of 2^53
    and more, keys that are no strings, lone surrogates, too deep or too large values.
    """
    text = _SORTING.encode(value) if _check(value, DEPTH) else _PLAIN.encode(_order(value))
    data = text.encode()  # a lone surrogate raises UnicodeEncodeError, a ValueError
    _check_size(data)
    return data


def decode(data: bytes) -> object:
    """The value of canonical bytes; any other bytes raise ValueError, and nothing else.

    Comparing with the re-encoded value refuses at once duplicate keys, white space,
    unsorted keys, ``-0``, escapes that are not needed and everything else of that kind.
    """
    brackets = _check_size(data)
    try:
        value: object = _DECODER.decode(data.decode())
        # What was JSON has a canonical form, but for depth, large integers and the order of
        # keys: where none of these can matter, nobody looks at each value.
        simple = brackets <= DEPTH and data.isascii() and not _has_long(data)
        encoded = _SORTING.encode(value).encode() if simple else encode(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if encoded != data:
        raise ValueError("not canonical JSON")
    return value


def _has_long(data: bytes) -> bool:
    """Says whether an integer of 16 digits may stand there; the first test is the fast one."""
    return b"0" * 16 in data.translate(_DIGITS) and _LONG.search(data) is not None


def _check(value: object, depth: int) -> bool:
    """Refuses values without a canonical form; True if all keys are ASCII.

    Of ASCII keys the order of code points is the order of UTF-16 code units.
    """
    kind = type(value)
    if kind is int:
        if not -SAFE < value < SAFE:  # type: ignore[operator]
            raise ValueError("an integer of 2^53 or more")
        return True
    if kind is str or kind is bool or value is None:
        return True
    if depth == 0:
        raise ValueError("nested too deeply")
    if isinstance(value, dict) and kind is dict:
        return _check_dict(value, depth)
    if isinstance(value, list) and kind is list:
        return _check_list(value, depth)
    raise ValueError(f"a {kind.__name__} has no canonical form")


def _check_dict(value: dict[object, object], depth: int) -> bool:
    plain = True
    for key, item in value.items():
        if type(key) is not str:
            raise ValueError("a key that is no string")
        plain &= key.isascii()
        plain &= _check(item, depth - 1)
    return plain


def _check_list(value: list[object], depth: int) -> bool:
    if set(map(type, value)) == {int}:  # token ids: thousands, so without a call for each
        low, high = min(value), max(value)  # type: ignore[type-var]
        return _check(low, depth) and _check(high, depth)
    plain = True
    for item in value:
        plain &= _check(item, depth - 1)
    return plain


def _order(value: object) -> object:
    """The same value with every dict in the order of its keys' UTF-16 code units."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
        return {key: _order(value[key]) for key in keys}
    if isinstance(value, list):
        return [_order(item) for item in value]
    return value


def _check_size(data: bytes) -> int:
    """How many brackets open; raises ValueError for what is too large."""
    if len(data) > LIMIT:
        raise ValueError(f"larger than {LIMIT} bytes")
    brackets = data.count(b"[") + data.count(b"{")
    if brackets > CONTAINERS:
        raise ValueError("too many brackets")
    return brackets


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"a float: {text[:20]}")


_DECODER = json.JSONDecoder(parse_float=_refuse, parse_constant=_refuse)
_PLAIN = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_SORTING = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True)
