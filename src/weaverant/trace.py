"""A task's trace, made small: plain data, and texts stored once.

A task says the same texts again and again: the row's document stands in every prompt, a reply in the next prompt
and in the result. `Texts` numbers each long text when it is first written and writes its number afterwards; reading
the events in order numbers them alike. `docs/data-format.md` gives the bytes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import msgspec
from msgspec.msgpack import Ext

from weaverant.errors import UserError
from weaverant.message import digest

SHARE_FROM = 24
"""Characters from which a text is numbered: a reference takes 3 to 5 bytes."""

BLOB_FROM = 65_536
"""Bytes of UTF-8 from which a text lives in a blob of its own."""

SCALARS = frozenset((str, int, float, bool, type(None)))
"""Types of data that holds no other data."""
_SETS, _LISTS, _NESTS = (set, frozenset), (list, tuple), (dict, list, tuple)

TEXT_REF = 1
BLOB_REF = 2


_REFS = tuple(Ext(TEXT_REF, bytes((number,))) for number in range(256))


_type: Callable[[object], Any] = type
"""`type`, by which a type checker narrows nothing: of data that may be anything it would make unknown types."""


class Texts:
    """The long texts of one task, in the order in which its events first named them. Either written or read, or read
    and then written; never read again after that."""

    __slots__ = ("_numbers", "_texts", "blobs")

    def __init__(self) -> None:
        self.blobs: dict[bytes, str] = {}
        """The longest texts by digest: those that `pack` found since somebody took them."""
        self._numbers: dict[str, int] = {}
        self._texts: list[str] = []
        """Those that were read."""

    def pack(self, value: Any) -> Any:
        """Plain data with repeated texts replaced by references; the longest texts go to `blobs`."""
        kind = _type(value)
        if kind is str:
            return value if len(value) < SHARE_FROM else self._pack_text(value)
        if kind is dict:
            return {
                key: (item if len(item) < SHARE_FROM else self._pack_text(item))
                if type(item) is str
                else (item if type(item) in SCALARS else self.pack(item))
                for key, item in value.items()
            }
        if kind is list or kind is tuple:
            return [
                (item if len(item) < SHARE_FROM else self._pack_text(item))
                if type(item) is str
                else (item if type(item) in SCALARS else self.pack(item))
                for item in value
            ]
        return value

    def pack_text(self, text: str) -> str | Ext:
        """The same for a text."""
        return text if len(text) < SHARE_FROM else self._pack_text(text)

    def unpack(self, value: Any, blob: Callable[[bytes], str]) -> Any:
        """The inverse of `pack`, for the same events in the same order."""
        kind = _type(value)
        if kind is str:
            return self._number(value) if len(value) >= SHARE_FROM else value
        if kind is dict:
            return {key: self.unpack(item, blob) for key, item in value.items()}
        if kind is list:
            return [self.unpack(item, blob) for item in value]
        if kind is Ext:
            if value.code == TEXT_REF:
                return self._texts[int.from_bytes(value.data, "little")]
            if value.code != BLOB_REF:
                raise ValueError(f"a reference of an unknown kind, {value.code}")
            return self._number(blob(bytes(value.data)))
        return value

    def mark(self) -> int:
        """How many texts there are: where `rollback` returns to when an event could not be written after all."""
        return len(self._numbers)

    def rollback(self, mark: int) -> None:
        for text in list(self._numbers)[mark:]:
            del self._numbers[text]
        self.blobs = {}

    def _pack_text(self, text: str) -> str | Ext:
        numbers = self._numbers
        count = len(numbers)
        number = numbers.setdefault(text, count)
        if number != count:
            return _REFS[number] if number < 256 else Ext(TEXT_REF, number.to_bytes(4, "little").rstrip(b"\0"))
        if len(text) * 4 >= BLOB_FROM and len(data := text.encode()) >= BLOB_FROM:
            key = digest(data)
            self.blobs[key] = text
            return Ext(BLOB_REF, key)
        return text

    def _number(self, text: str) -> str:
        if text not in self._numbers:
            self._numbers[text] = len(self._texts)
            self._texts.append(text)
        return text


def plain(value: Any, what: str) -> Any:
    """Data as the journal can hold it: dict, list, str, int, float, bool, None. Tuples become lists, pydantic
    models and dataclasses become dicts, dates become ISO strings, keys become strings: live and replayed alike.
    """
    kind = _type(value)
    if kind in SCALARS:
        return value
    try:
        if _is_plain(value):
            return fresh(value)
        return fresh(msgspec.to_builtins(_sorted_sets(value), str_keys=True, enc_hook=_plain_object))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        _close_coroutines(value)
        raise UserError(
            f"{what} cannot be stored: {error}. Expected plain data (dict, list, text, numbers, true/false/null), "
            "a dataclass or a pydantic model"
        ) from None


def _is_plain(value: Any) -> bool:
    """Whether it is made of just the types that JSON knows: then the general way, of three times the work, would
    change nothing."""
    kind = _type(value)
    if kind in SCALARS:
        return True
    if kind is dict:
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    return kind is list and all(map(_is_plain, value))


MOST_NESTED = 200
"""Levels of data in data. Far below Python's own limit, which depends on its version and on who calls: what was
written in one place must be readable in every other."""


def fresh(value: Any, level: int = 0) -> Any:
    """A copy that its reader may change, with lists for tuples, as it will be read from the journal."""
    kind = _type(value)
    if kind in SCALARS or not isinstance(value, _NESTS):
        return value
    if level >= MOST_NESTED:
        raise ValueError(f"it is nested more than {MOST_NESTED} levels deep")
    if isinstance(value, dict):
        return {key: fresh(item, level + 1) for key, item in cast("dict[str, Any]", value).items()}
    return [fresh(item, level + 1) for item in cast("list[Any]", value)]


def _sorted_sets(value: Any) -> Any:
    """Sets as sorted lists: their own order differs from process to process."""
    kind = _type(value)
    if kind in SCALARS:
        return value
    if isinstance(value, _SETS):
        return sorted((_sorted_sets(item) for item in cast("set[Any]", value)), key=repr)
    if isinstance(value, dict):
        return {key: _sorted_sets(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, _LISTS):
        return [_sorted_sets(item) for item in cast("list[Any]", value)]
    return value


def _plain_object(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    forgotten = " (did you forget `await`?)" if inspect.isawaitable(value) else ""
    raise TypeError(f"an object of type {type(value).__qualname__!r} was found{forgotten}")


def _close_coroutines(value: Any) -> None:
    """Those that nobody awaited: the error tells of them, and Python's warning at their end would only repeat it."""
    unseen, seen = [value], set[int]()
    while unseen:
        one = unseen.pop()
        if inspect.iscoroutine(one):
            one.close()
        elif isinstance(one, (dict, *_LISTS, *_SETS)) and id(cast("object", one)) not in seen:
            seen.add(id(cast("object", one)))
            unseen += cast("dict[Any, Any]", one).values() if isinstance(one, dict) else cast("list[Any]", one)
