"""Hold values against a struct, field by field, and gather every problem instead of the first."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import msgspec

from aegis.decoding import learnt
from aegis.errors import Problem
from aegis.spec.document import SHOWN
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from aegis.spec.document import Document, Path

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}
_EXPECTED = re.compile(r"Expected `([^`]+)`(.*?)(?:, got `([^`]+)`)?$")


@cache
def field_types(cls: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the type of every field of a struct, with its constraints."""
    return {field.name: field.type for field in msgspec.structs.fields(cls)}


def check_mapping(
    document: Document,
    path: Path,
    types: Mapping[str, Any],
    known: Collection[str] = (),
    elsewhere: Collection[str] = (),
) -> tuple[dict[str, Any], list[Problem]]:
    """Convert the keys of the mapping at `path` that `types` names.

    Args:
        document: the file.
        path: where the mapping stands in it.
        types: the type of each key that may stand here.
        known: keys that may stand here too, left to the caller.
        elsewhere: keys that belong to the top level of the file, for the hint.

    Returns:
        The converted values, and a problem for each wrong value or unknown key.
    """
    mapping = value_at(document, path)
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    if not isinstance(mapping, dict):
        if mapping is None and not path:
            return {}, [Problem(document.where(path), "the file is empty")]
        found = "nothing" if mapping is None else _kind(mapping)
        return {}, [Problem(document.where(path), f"expected a mapping of keys to values, not {found}")]
    for key, value in mapping.items():
        here = (*path, key)
        if key in types:
            wrong = check_value(document, here, key, value, types[key])
            problems += wrong
            if not wrong:
                values[key] = convert(value, types[key], text=_literal(document, value, here))
        elif key not in known:
            hint = (
                "it belongs to the top level of the file"
                if key in elsewhere
                else did_you_mean(key, [*types, *known])
            )
            problems.append(Problem(document.where(here), f"unknown key `{key}`", hint))
    return values, problems


def value_at(document: Document, path: Path) -> Any:
    """Return the value at a path of a document."""
    value = document.value
    for step in path:
        value = value[step]
    return value


def convert(value: Any, type_: Any, *, text: Any = None, strict: bool = True) -> Any:
    """Convert a value; where text is wanted, `text` (what the file literally says) serves.

    Raises:
        msgspec.ValidationError: it does not fit the type.
    """
    learnt(type_)
    try:
        return msgspec.convert(value, type_, strict=strict)
    except msgspec.ValidationError:
        if text is not None and text != value:
            try:
                return msgspec.convert(text, type_, strict=strict)
            except msgspec.ValidationError:
                pass
        raise


def check_value(document: Document, path: Path, name: str, value: Any, type_: Any) -> list[Problem]:
    """Return what is wrong with a value, item by item where it is a list or a mapping."""
    try:
        convert(value, type_, text=_literal(document, value, path))
    except msgspec.ValidationError as error:
        found = [
            problem
            for step, item, item_type in _items(value, type_)
            for problem in check_value(document, (*path, step), _step(name, step), item, item_type)
        ]
        return found or [
            Problem(document.where(path), explain(name, value, error), hint_for(type_, value, error))
        ]
    return []


def _items(value: Any, type_: Any) -> Iterator[tuple[str | int, Any, Any]]:
    """Yield the position, the value and the type of each item, where the value is the container that is wanted."""
    inner = get_args(type_)[0] if get_origin(type_) is Annotated else type_
    if isinstance(value, list) and get_origin(inner) is tuple:
        yield from ((index, item, get_args(inner)[0]) for index, item in enumerate(value))
    elif isinstance(value, dict) and get_origin(inner) is dict:
        yield from ((key, item, get_args(inner)[1]) for key, item in value.items())


def _step(name: str, step: str | int) -> str:
    return f"{name}[{step}]" if isinstance(step, int) else f"{name}.{step}"


def explain(name: str, value: Any, error: msgspec.ValidationError) -> str:
    """Return msgspec's complaint about a value in a person's words."""
    said = str(error)
    if match := _EXPECTED.match(said):
        if match[2] == " of length >= 1" and value == "":
            return f"`{name}` is empty"
        words = [word.strip() for word in match[1].split("|")]
        wanted = " or ".join(_WORDS.get(word, word) for word in words if word != "null")
        return f"`{name}` should be {wanted}{match[2]}, not {_shown(value)}"
    if said.startswith("Invalid enum value"):
        return f"`{name}` cannot be {_shown(value)}"
    return f"`{name}`: {said[:1].lower()}{said[1:]}"


def choices(type_: Any) -> tuple[str, ...]:
    """Return the values of a Literal type, however it is wrapped; () for other types."""
    info = msgspec.inspect.type_info(type_)
    stack = [info]
    while stack:
        info = stack.pop()
        if isinstance(info, msgspec.inspect.Metadata):
            stack.append(info.type)
        elif isinstance(info, msgspec.inspect.UnionType):
            stack.extend(info.types)
        elif isinstance(info, msgspec.inspect.LiteralType):
            return tuple(str(value) for value in info.values)
    return ()


def hint_for(type_: Any, value: Any, error: msgspec.ValidationError) -> str | None:
    """Return what to write instead, where that is known."""
    if "Expected `array`" in str(error):
        return "write one list item per argument"
    if "Expected `object`" in str(error):
        return "write one `NAME: value` per line"
    if isinstance(value, str) and _fits(value, type_):
        return "remove the quotes"
    if allowed := choices(type_):
        close = did_you_mean(str(value), allowed)
        number = "a number, or " if _fits("1", type_) else ""
        return close or f"{number}{'one of ' * (len(allowed) > 1)}{', '.join(allowed)}"
    return None


def _fits(text: str, type_: Any) -> bool:
    try:
        msgspec.convert(text, type_, strict=False)
    except msgspec.ValidationError:
        return False
    return True


def _literal(document: Document, value: Any, path: Path) -> Any:
    """Return the value with every number and bool as the text that the file has for it."""
    if isinstance(value, dict):
        return {key: _literal(document, item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(document, item, (*path, index)) for index, item in enumerate(value)]
    return document.texts.get(path, value)


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "a number"}
    return names.get(type(value), "a value")


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return _kind(value)
    text = ascii(value)[1:-1] if isinstance(value, str) and not value.isprintable() else str(value)
    if isinstance(value, bool):
        text = text.lower()
    return f"`{text[:SHOWN]}…`" if len(text) > SHOWN else f"`{text}`"
