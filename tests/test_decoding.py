"""Types are learnt once, whichever threads meet them first."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from aegis.decoding import from_json, learnt

# Six threads meet each of many types at the same moment; read by msgspec alone this ends the interpreter.
MEETING = """
import sys, threading
from msgspec import convert, defstruct, field
from aegis.decoding import from_json, learnt

sys.setswitchinterval(1e-6)
for number in range(150):
    inner = defstruct(f"Inner{number}", [("a", int), ("b", "str | None", None)], namespace={"__module__": "builtins"})
    several = [(f"f{each}", list[inner], field(default_factory=list)) for each in range(5)]
    outer = defstruct(f"Outer{number}", several)
    together, found = threading.Barrier(6), []

    def read():
        together.wait()
        if number % 2:
            found.append(from_json(b'{"f0": [{"a": 1}]}', outer))
        else:
            learnt(outer)
            found.append(convert({"f0": [{"a": 1}]}, outer))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == [outer(f0=[inner(a=1)])] * 6
"""


def test_threads_may_meet_a_type_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEETING], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_does_not_fit_is_told_as_msgspec_tells_it() -> None:
    assert from_json('{"a": [1, 2]}', dict[str, list[int]]) == {"a": [1, 2]}
    assert learnt(int).decode(b"3") == 3
    with pytest.raises(msgspec.ValidationError, match="Expected `int`"):
        from_json(b'"x"', int)
    with pytest.raises(msgspec.DecodeError):
        from_json(b"{", int)
