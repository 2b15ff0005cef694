"""Read a YAML file with YAML 1.2 meaning, and remember the line that every value stands on.

YAML 1.1 readers turn `01:00:00` into 3600 and `no` into false. Here only the plain scalars of the YAML 1.2
core schema (section 10.3.2) become something other than text.
"""

from __future__ import annotations

import functools
import re
import sys
from typing import TYPE_CHECKING, Any

import yaml
from msgspec import Struct

from aegis.errors import ConfigError, DeploymentError, Problem

if TYPE_CHECKING:
    from pathlib import Path as FilePath

Path = tuple[str | int, ...]

STDIN = "-"
SHOWN = 60  # characters of a wrong value that a message repeats
MAX_BYTES = 4 << 20  # a deployment or catalog is kilobytes; anything this large is the wrong file
MAX_DEPTH = 50  # libyaml builds nodes recursively: deep nesting overflows the stack of the process
MAX_VALUES = 200_000  # stops aliases of aliases ("billion laughs") before they fill the memory


class Document(Struct, frozen=True):
    """The values of a YAML file, the line of each, and the text of those that are not text."""

    name: str
    value: Any
    lines: dict[Path, int]
    texts: dict[Path, str]  # the literal text of plain scalars that mean a number or a bool
    problems: tuple[Problem, ...]

    def where(self, path: Path) -> str:
        """Return `file:line` of the value at `path`, or of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.name}:{self.lines.get(path, 1)}"


_FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where libyaml is there


class _Loader(_FastLoader):  # type: ignore[misc]
    """Resolves plain scalars as YAML 1.2's core schema does."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own attribute


_CORE_SCHEMA = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)
for _tag, _pattern, _first in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def read_document(file: FilePath) -> Document:
    """Read a YAML file; `-` is standard input.

    Raises:
        ConfigError: the file cannot be read.
        DeploymentError: it is not YAML.
    """
    try:
        raw = sys.stdin.buffer.read() if str(file) == STDIN else file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read: {error.strerror}", hint="check the path given with --config"
        ) from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{file}: {len(raw)} bytes is no configuration file", hint="is it the right file?")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DeploymentError([Problem(f"{file}:{line}", "not UTF-8 text", "save it as UTF-8")]) from None
    return parse_document(text, str(file))


@functools.lru_cache(maxsize=64)  # a command asks for the profiles of platforms and the catalog several times
def parse_document(text: str, name: str) -> Document:
    """Read YAML text; `name` stands for the file in messages; callers leave what they get as it is.

    Raises:
        DeploymentError: it is not YAML.
    """
    try:
        _check_depth(text, name)
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise DeploymentError([_syntax_problem(error, name, text)]) from None
    builder = _Builder(name)
    value = builder.build(root, ()) if root is not None else None
    return Document(name, value, builder.lines, builder.texts, tuple(builder.problems))


def _check_depth(text: str, name: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise DeploymentError([Problem(f"{name}:{line}", f"nested more than {MAX_DEPTH} levels deep")])


def _syntax_problem(error: yaml.YAMLError, name: str, text: str) -> Problem:
    """Return libyaml's complaint: what it was reading, what it found, and where that began."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:  # a character that YAML does not have: only its byte position is known
        line = text.encode(errors="replace").count(b"\n", 0, getattr(error, "position", 0)) + 1
        return Problem(f"{name}:{line}", f"not valid YAML: {getattr(error, 'reason', error)}")
    where = f"{name}:{mark.line + 1}"
    lines = text.split("\n")
    if lines[mark.line : mark.line + 1] and "\t" in _indentation(lines[mark.line]):
        return Problem(where, "a tab is used for indentation", "use spaces")
    context, began = getattr(error, "context", None), getattr(error, "context_mark", None)
    said = ", ".join(part for part in (context, getattr(error, "problem", None)) if part)
    hint = f"it begins on line {began.line + 1}" if began and began.line != mark.line else None
    if "mapping values are not allowed" in said or said.endswith("did not find expected key"):
        hint = "quote a value that has a colon in it, or check the indentation"
    return Problem(where, f"not valid YAML: {said}", hint)


def _indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


class _Builder:
    """Turns PyYAML's nodes into plain values and keeps their positions."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Path, int] = {}
        self.texts: dict[Path, str] = {}
        self.problems: list[Problem] = []
        self._open: set[int] = set()

    def build(self, node: yaml.Node, path: Path) -> Any:
        if path not in self.lines:
            self.lines[path] = node.start_mark.line + 1
        if len(self.lines) > MAX_VALUES:
            raise DeploymentError([Problem(self._where(node), f"more than {MAX_VALUES} values")])
        if id(node) in self._open:
            self.problems.append(Problem(self._where(node), "an alias that contains itself"))
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.Node, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(self._where(key_node), "a key has to be text"))
                continue
            key = key_node.value
            if key in result:
                first = self.lines[(*path, key)]
                self.problems.append(
                    Problem(self._where(key_node), f"`{key}` is given twice", f"first on line {first}")
                )
                continue
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            result[key] = self.build(value_node, (*path, key))
        return result

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        text: str = node.value
        if "\0" in text:
            self.problems.append(Problem(self._where(node), "a NUL character, which no program can be given"))
            return None
        kind = node.tag.rpartition(":")[2]
        if kind == "str" or node.style in {"'", '"', "|", ">"}:
            return text
        try:
            value = _core_value(kind, text)
        except ValueError:
            self.problems.append(
                Problem(
                    self._where(node),
                    f"`{text[:SHOWN]}` cannot be read as {node.tag}",
                    "quote it to keep it as text",
                )
            )
            return text
        if value is not None:
            self.texts[path] = text
        return value

    def _where(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"


def _core_value(kind: str, text: str) -> Any:
    """Return the value of a plain scalar whose tag the core schema chose."""
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in {"true", "false"}:
        return text.lower() == "true"
    if kind == "int":
        return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    raise ValueError(kind)
