"""One run of prompts in a process of its own, as the command will make it: INPUT OUTPUT KIND PORT...

Rows of the batch format where KIND is `batch`, else their column `text`. Exit codes: 0, 7 with rows left, or an error's.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aegis.api.http import open_session
from aegis.api.targets import Target
from aegis.errors import AegisError
from aegis.mapper.balance import Limits
from aegis.mapper.dispatch import Dispatcher, Settings
from aegis.mapper.rows import Source
from aegis.mapper.run import Outcome, Run
from aegis.mapper.template import Template

if TYPE_CHECKING:
    from collections.abc import Iterable


class Fixed:
    """A fleet that a test changes by hand."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self._revision, self._targets = 0, tuple(targets)

    def change(self, targets: Iterable[Target]) -> None:
        self._revision, self._targets = self._revision + 1, tuple(targets)

    def now(self) -> tuple[int, tuple[Target, ...]]:
        return self._revision, self._targets


async def push(run: Run, fleet: Fixed, **given: Any) -> Outcome:
    settings: dict[str, Any] = {"limits": Limits(start=8), "patience": 30.0, **given}
    async with open_session() as session:
        await run.work(Dispatcher(session, fleet, run.journal, Settings(**settings)))
    return run.finish()


def main(input_: str, output: str, kind: str, *ports: str) -> int:
    template = None if kind == "batch" else Template("{text}", kind, {"model": "m"})  # type: ignore[arg-type]
    fleet = Fixed(Target("127.0.0.1", int(port), ("m",)) for port in ports)
    try:
        with Run(Source((input_,), template), Path(output)) as run:
            outcome = asyncio.run(push(run, fleet))
    except AegisError as error:
        sys.stderr.write(error.message + "\n")
        return error.exit_code
    return 7 if outcome.left else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
