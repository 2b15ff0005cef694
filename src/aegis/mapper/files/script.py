"""The program that is run for each file, from the template of `--script`. Pure."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from aegis.errors import ConfigError
from aegis.spec.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

PLACEHOLDERS: Final = ("input", "output", "base_url", "host", "port", "model", "api_key_file")
TOKEN: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
# Programs that read one of their arguments as a program: a value in it would be read, too.
INTERPRETER: Final = re.compile(
    r"(?:(?P<c>(?:ba|da|z|k|fi|a)?sh|python[0-9.]*)|perl[0-9.]*|ruby[0-9.]*|node)\Z"
)


class Script(Struct, frozen=True):
    """Words of a command; each is the pieces between placeholders, and their names: literal, name, literal, ..."""

    text: str
    words: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Script:
        """Read a template: words as a shell splits them, though none ever reads them.

        Raises:
            ConfigError: a quote is not closed, a placeholder is unknown, or no input is named.
        """
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise ConfigError(f"--script: {error}", hint="words are split as a shell does") from None
        script = cls(text, tuple(_pieces(word) for word in words))
        _refuse_values_in_programs(script)
        if "input" not in script.names:
            raise ConfigError(
                "--script names no {input}",
                hint="for example: --script 'python client.py {input} {base_url}'",
            )
        return script

    @property
    def names(self) -> frozenset[str]:
        """The placeholders that stand in it."""
        return frozenset(name for word in self.words for name in word[1::2])

    def argv(self, values: Mapping[str, str]) -> list[str]:
        """Return the command of one try; a value is a part of one argument, whatever characters it has."""
        return [
            "".join(values[piece] if place % 2 else piece for place, piece in enumerate(word))
            for word in self.words
        ]


def _pieces(word: str) -> tuple[str, ...]:
    pieces, literal, end = [], "", 0
    for found in TOKEN.finditer(word):
        literal += word[end : found.start()]
        end = found.end()
        if found[0] in {"{{", "}}"}:
            literal += found[0][0]
            continue
        name = found[1]
        if name not in PLACEHOLDERS:
            raise _unknown(found[0], name)
        pieces += [literal, name]
        literal = ""
    return (*pieces, literal + word[end:])


def _unknown(text: str, name: str | None) -> ConfigError:
    if name is None:
        return ConfigError(f"--script has a single {text}", hint=f"write {text * 2} for the character itself")
    known = ", ".join(f"{{{each}}}" for each in PLACEHOLDERS)
    guess = did_you_mean(name, PLACEHOLDERS)
    return ConfigError(
        f"--script: {text} is no placeholder" + (f" ({guess})" if guess else ""),
        hint=f"there are {known}; {{{{ and }}}} stand for braces",
    )


def _refuse_values_in_programs(script: Script) -> None:
    """Refuse `bash -c '... {input}'`: what the name of a file holds would be run."""
    plain = [word[0] for word in script.words]
    for number, word in enumerate(plain):
        kind = INTERPRETER.match(word.rpartition("/")[2])
        if kind is None:
            continue
        letter = "c" if kind["c"] else "e"
        for place in range(number + 1, len(plain) - 1):
            option = plain[place]
            if not option.startswith("-") or option.startswith("--"):
                break
            if letter in option:
                if len(script.words[place + 1]) > 1:
                    raise ConfigError(
                        f"--script: {{{script.words[place + 1][1]}}} stands in the text of a program, "
                        "which would run what is in the value",
                        hint='hand it over as an argument: bash -c \'client "$1" > "$2"/answers\' - {input} {output}',
                    )
                break
