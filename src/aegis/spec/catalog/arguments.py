"""Engine arguments, variables and binds as they are written on a command line, in the manner of vec-inf.

A comma separates; but it stays where it belongs to a value: inside `{...}`, `[...]` and quotes, and wherever what follows
starts neither a flag nor a variable.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# Short names, and second names that would keep a later value from replacing an earlier one
ALIASES = {
    "vllm": {
        "-tp": "--tensor-parallel-size",
        "-pp": "--pipeline-parallel-size",
        "-dp": "--data-parallel-size",
        "-n": "--nnodes",
        "-r": "--node-rank",
        "-dcp": "--decode-context-parallel-size",
        "-pcp": "--prefill-context-parallel-size",
        "-dpn": "--data-parallel-rank",
        "-dpr": "--data-parallel-start-rank",
        "-dpl": "--data-parallel-size-local",
        "-dpa": "--data-parallel-address",
        "-dpp": "--data-parallel-rpc-port",
        "-dpb": "--data-parallel-backend",
        "-dph": "--data-parallel-hybrid-lb",
        "-dpe": "--data-parallel-external-lb",
        "-q": "--quantization",
    },
    "sglang": {
        "--tp": "--tensor-parallel-size",
        "--tp-size": "--tensor-parallel-size",
        "--pp": "--pipeline-parallel-size",
        "--pp-size": "--pipeline-parallel-size",
        "--dp": "--data-parallel-size",
        "--dp-size": "--data-parallel-size",
        "--ep": "--expert-parallel-size",
        "--ep-size": "--expert-parallel-size",
    },
}
FLAG = re.compile(r"--?[A-Za-z]")
VARIABLE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
PATH_LIKE = re.compile(r"\s*(?:~|\.{0,2}/)|.*\.env\s*$")
PAIRS = {"{": "}", "[": "]"}
QUOTES = "\"'"


class File(Struct, frozen=True):
    """A file of variables, named where a variable may stand."""

    name: str


def canonical(engine: str, flag: str) -> str:
    """Return the one name of a flag that has several."""
    name = flag.replace("_", "-") if flag.startswith("--") else flag
    return ALIASES.get(engine, {}).get(name, name)


def parse_arguments(text: str, engine: str) -> dict[str, Any]:
    """Return the flags of `--a=1,--b` or `--a 1 --b` and their values: text, several texts, or True where there is none.

    Raises:
        ValueError: a quote or bracket is left open, or it does not begin with a flag.
    """
    given: dict[str, list[str]] = {}
    values: list[str] | None = None
    for word in _words(text, _ends_argument):
        if FLAG.match(word):
            flag, equals, value = word.partition("=")
            values = given[canonical(engine, flag)] = [value] if equals else []
        elif values is None:
            raise ValueError(f"`{word}` is no flag: write --name=value, with commas between them")
        else:
            values.append(word)
    return {flag: (all_[0] if len(all_) == 1 else all_ or True) for flag, all_ in given.items()}


def as_words(arguments: Mapping[str, Any], engine: str) -> tuple[str, ...]:
    """Return engine arguments as words of a command line.

    True is a bare flag. False is vLLM's `--no-x`; SGLang has no such flags, so there it is nothing. A list is several
    words, a mapping is JSON.
    """
    words: list[str] = []
    for flag, value in arguments.items():
        if value is True:
            words.append(flag)
        elif value is False:
            if engine == "vllm" and flag.startswith("--") and not flag.startswith("--no-"):
                words.append(f"--no-{flag[2:]}")
        else:
            texts = [_text(item) for item in (value if isinstance(value, list) else [value])]
            joined = len(texts) == 1 and (texts[0].startswith("-") or not flag.startswith("--"))
            words += [f"{flag}={texts[0]}"] if joined else [flag, *texts]
    return tuple(words)


def split_binds(text: str) -> tuple[str, ...]:
    """Return the paths of a comma list."""
    return tuple(filter(None, (path.strip() for path in text.split(","))))


def split_variables(text: str) -> list[tuple[str, str] | File]:
    """Return the variables and files of `A=1,B=2,more.env`.

    After a variable, what is no variable itself belongs to its value, comma included (`NO_PROXY=localhost,10.0.0.1`),
    unless it looks like a path. Quotes keep anything together: `A="1,B=2"`.

    Raises:
        ValueError: a quote or bracket is left open, or something is neither.
    """
    found: list[tuple[str, str] | File] = []
    for piece in _words(text, lambda text, index: text[index] == ","):
        last = found[-1] if found else None
        if match := VARIABLE.fullmatch(piece):
            found.append((match[1], match[2]))
        elif isinstance(last, tuple) and not PATH_LIKE.match(piece):
            found[-1] = (last[0], f"{last[1]},{piece}")
        elif "=" in piece or not piece.strip():
            raise ValueError(f"`{piece}` is not NAME=VALUE")
        else:
            found.append(File(piece.strip()))
    return found


def parse_variables(text: str) -> dict[str, str]:
    """Return the variables of a file with one `NAME=VALUE` a line.

    Raises:
        ValueError: a line is something else; the message begins with its number.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip().removeprefix("export ")
        if not stripped or stripped.startswith("#"):
            continue
        match = VARIABLE.fullmatch(stripped)
        if not match:
            raise ValueError(f"{number}: this line is not NAME=VALUE")
        value = match[2].strip()
        quoted = len(value) > 1 and value[0] in QUOTES and value[0] == value[-1]
        found[match[1]] = value[1:-1] if quoted else value
    return found


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.15g}"  # 1e5 is a whole number to whoever wrote it
    return json.dumps(value)


def _ends_argument(text: str, index: int) -> bool:
    """White space ends a word, and so does a comma before a flag, or at the end."""
    if text[index].isspace():
        return True
    rest = text[index + 1 :].lstrip() if text[index] == "," else None
    return rest is not None and (not rest or FLAG.match(rest) is not None)


def _words(text: str, ends: Callable[[str, int], bool]) -> Iterator[str]:
    """Yield the words of a text; `ends` tells where one ends, outside of brackets and quotes.

    Both open at the start of a value only: `it's` and `a[1` are words like any other.
    """
    word: list[str] = []
    started = False
    position = 0
    while position < len(text):
        char = text[position]
        value_starts = not word or word[-1] == "="
        if value_starts and char in PAIRS:
            end = _after_brackets(text, position)
            word.append(text[position:end])
        elif value_starts and char in QUOTES:
            end = text.find(char, position + 1) + 1
            if not end:
                raise ValueError(f"a quote is left open in `{text[position:]}`")
            word.append(text[position + 1 : end - 1])
        elif ends(text, position):
            end = position + 1
            if started:
                yield "".join(word)
            word, started = [], False
            position = end
            continue
        else:
            end = position + 1
            word.append(char)
        started, position = True, end
    if started:
        yield "".join(word)


def _after_brackets(text: str, start: int) -> int:
    """Return the position after the bracket that closes the one at `start`; strings of JSON are passed over whole."""
    closing: list[str] = []
    in_string = False
    position = start
    while position < len(text):
        char = text[position]
        if in_string:
            position += char == "\\"
            in_string = char != '"'
        elif char == '"':
            in_string = True
        elif char in PAIRS:
            closing.append(PAIRS[char])
        elif char == closing[-1]:
            closing.pop()
        position += 1
        if not closing:
            return position
    raise ValueError(f"a bracket is left open in `{text[start:]}`")
