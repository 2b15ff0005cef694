"""What the arguments of an engine say, as far as a check needs it."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

AMOUNT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([kKmMgGtT]?)")
DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}  # as vLLM tells them apart: 1k = 1000, 1K = 1024
NEGATIVE = re.compile(r"-\d")


class Flags:
    """The arguments that an engine gets, platform's and user's; the last one of a name counts.

    `--hf-overrides.layers 2`, as vLLM lets one write JSON, is `--hf-overrides` here.
    """

    def __init__(self, args: Iterable[str]) -> None:
        self._values: dict[str, str | None] = {}
        last = None
        for arg in args:
            if arg.startswith("-") and not NEGATIVE.match(arg):
                name, equals, value = arg.partition("=")
                last = name.partition(".")[0].replace("_", "-") if name.startswith("--") else name
                self._values.pop(last, None)  # so that the order is that of the last of each
                self._values[last] = value if equals else None
            elif last is not None:
                if self._values[last] is None:
                    self._values[last] = arg
                last = None

    def has(self, *names: str) -> bool:
        """Tell whether one of these flags is given."""
        return any(name in self._values for name in names)

    def on(self, name: str, *more: str) -> bool:
        """Tell whether a switch is on: `--x`, and no `--no-x` after it."""
        switches = {name: True, f"--no-{name.removeprefix('--')}": False, **dict.fromkeys(more, True)}
        given = [switches[each] for each in self._values if each in switches]
        return bool(given) and given[-1]

    def text(self, *names: str) -> str | None:
        """Return the value of one of these flags."""
        return next((self._values[name] for name in names if self._values.get(name)), None)

    def number(self, name: str) -> float | None:
        """Return the value of a flag as a number above 0, if it is one."""
        try:
            value = float(self._values.get(name) or "")
        except ValueError:
            return None
        return value if 0 < value < math.inf else None

    def amount(self, name: str) -> int | None:
        """Return the value of a flag that may be written as `32k` or `64M`; `auto` and -1 are None."""
        match = AMOUNT.fullmatch((self._values.get(name) or "").strip())
        return int(float(match[1]) * (DECIMAL | BINARY)[match[2]]) if match else None
