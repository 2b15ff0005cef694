"""A prompt with `{columns}` in it, and the bodies of requests made of it. Pure."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import msgspec

from aegis.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Kind = Literal["chat", "completions", "embeddings"]

PATHS: Final[Mapping[Kind, str]] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
}
KEYS: Final = {PATHS["chat"]: "messages", PATHS["completions"]: "prompt", PATHS["embeddings"]: "input"}
DOUBLE: Final = {"{{": "{", "}}": "}"}
PART: Final = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]")


class Template:
    """How a plain row becomes a request.

    Args:
        prompt: text with `{column}` where a value goes; `{{` and `}}` are braces.
        kind: the route that rows are sent to.
        parameters: what each body has besides (`model`, `max_tokens`, `temperature`, ...).
        system: text of a system message, for chats.

    Raises:
        ConfigError: a brace stands alone, or there is nothing to fill in.
    """

    def __init__(
        self,
        prompt: str,
        kind: Kind = "chat",
        parameters: Mapping[str, Any] | None = None,
        system: str | None = None,
    ) -> None:
        if kind not in get_args(Kind):
            raise ConfigError(f"{kind!r} is no kind of request", hint=f"one of {', '.join(get_args(Kind))}")
        if system is not None and kind != "chat":
            raise ConfigError(f"a system message is for chats, not for {kind}")
        self.prompt, self.kind, self.system = prompt, kind, system
        self.parameters = dict(parameters or {})
        self.path = PATHS[kind]
        self._parts = tuple(_parts(prompt))
        self.columns = tuple(dict.fromkeys(part for part, is_column in self._parts if is_column))
        if not self.columns:
            raise ConfigError(
                f"the prompt {prompt!r} names no column, so every row would be the same",
                hint="write {column} where a value of the row goes",
            )

    @property
    def model(self) -> str:
        """The model that every row asks for, or nothing."""
        return str(self.parameters.get("model") or "")

    def fingerprint(self) -> dict[str, str]:
        """Return what must stay the same when a run is continued."""
        parameters = msgspec.json.encode(self.parameters, order="deterministic").decode()
        return {
            "prompt": self.prompt,
            "kind": self.kind,
            "system message": self.system or "",
            "parameters": parameters,
        }

    def body(self, values: Mapping[str, Any]) -> bytes:
        """Return the JSON of a request.

        Raises:
            ValueError: a column is missing or empty of meaning, or is no text.
        """
        text = "".join([_text(part, values) if is_column else part for part, is_column in self._parts])
        content: Any = text
        if self.kind == "chat":
            content = [{"role": "user", "content": text}]
            if self.system is not None:
                content.insert(0, {"role": "system", "content": self.system})
        try:
            return msgspec.json.encode({**self.parameters, KEYS[self.path]: content})
        except UnicodeEncodeError:
            raise ValueError("it is not UTF-8") from None

    def missing(self, columns: Iterable[str], *more: str) -> str | None:
        """Return what is wrong where a table has these columns; `more` are needed besides those of the prompt."""
        known = list(columns)
        unknown = [column for column in (*self.columns, *more) if column not in known]
        return _unknown(unknown[0], known) if unknown else None


def _parts(prompt: str) -> Iterable[tuple[str, bool]]:
    """Yield texts and columns; the flag tells them apart."""
    end = 0
    for match in PART.finditer(prompt):
        if match.start() > end:
            yield prompt[end : match.start()], False
        end = match.end()
        found = match[0]
        if found in DOUBLE:
            yield DOUBLE[found], False
        elif len(found) > len("{}"):
            yield found[1:-1], True
        else:
            raise ConfigError(
                f"the prompt has {found!r} at character {match.start() + 1}, which names no column",
                hint="a brace that is meant as text is written twice: {{ or }}",
            )
    if end < len(prompt):
        yield prompt[end:], False


def _text(column: str, values: Mapping[str, Any]) -> str:
    try:
        value = values[column]
    except KeyError:
        raise ValueError(_unknown(column, list(values))) from None
    if isinstance(value, str):
        return value
    if value is None:
        raise ValueError(f"it has no value for {column!r}")
    if isinstance(value, bytes):
        raise ValueError(f"{column!r} is binary, not text")  # noqa: TRY004 - the row is wrong, not the call
    if isinstance(value, bool | dict | list):
        return msgspec.json.encode(value).decode()
    return str(value)


def _unknown(column: str, known: list[str]) -> str:
    close = difflib.get_close_matches(column, known, 1)
    listed = ", ".join(map(repr, known)) or "none"
    return f"there is no column {column!r}" + (f", did you mean {close[0]!r}?" if close else f": {listed}")
