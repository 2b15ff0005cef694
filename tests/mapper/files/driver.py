"""A run of files against instances that are only names: for tests, and as a process that can be killed.

INPUTS OUTPUT SCRIPT SLOTS, with two instances. Exit codes: 0, 7 with files left, or an error's.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aegis.api.targets import Target
from aegis.errors import AegisError
from aegis.mapper.files import crew
from aegis.mapper.files.run import FilesRun, Outcome
from aegis.mapper.files.schedule import Rules
from aegis.mapper.files.script import Script
from aegis.mapper.files.site import Site
from aegis.mapper.files.work import Settings, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

COPY = """sh -c 'cat "$1" > "$2"/copy' - {input} {output}"""


class Fixed:
    """A fleet that a test changes by hand."""

    def __init__(self, *ports: int, node: str = "") -> None:
        self.node = node
        self.change(*ports)

    def change(self, *ports: int) -> None:
        self.targets = tuple(Target("127.0.0.1", port, ("m",), self.node) for port in ports)

    def now(self) -> tuple[int, tuple[Target, ...]]:
        return 0, self.targets


def settings(
    *, slots: int = 1, tries: int = 3, back_off: float = 0.02, pause: float = 0.1, **given: Any
) -> Settings:
    rules = Rules(slots=slots, tries=tries, back_off=back_off, pause=pause)
    return Settings(**{"rules": rules, "kill_seconds": 0.5, "patience": 10.0, **given})


def push(
    paths: Iterable[Path],
    output: Path,
    script: str = COPY,
    fleet: Fixed | None = None,
    *,
    site: Site | None = None,
    alive: Callable[[Target], bool] = lambda _: True,
    meanwhile: Callable[[Work], None] = lambda _: None,
    how: Settings | None = None,
    retry_failed: bool = False,
) -> Outcome:
    """Do a whole run; `meanwhile` is called again and again."""
    where = site or Site(python=sys.executable)

    async def drive(run: FilesRun) -> None:
        work = Work(run, where, fleet or Fixed(1, 2), alive=alive)
        ticking = asyncio.create_task(tick(work))
        try:
            await work.run()
        finally:
            if ticking.done():
                ticking.result()
            ticking.cancel()

    async def tick(work: Work) -> None:
        while True:
            meanwhile(work)
            await asyncio.sleep(0.01)

    with FilesRun(Script.parse(script), paths, output, how or settings(), retry_failed=retry_failed) as run:
        if len(run.inputs):
            asyncio.run(drive(run))
        return run.outcome()


def main(inputs: str, output: str, script: str, slots: str) -> int:
    vars(crew)["PAUSE"] = 0.1
    try:
        outcome = push(
            sorted(Path(inputs).rglob("*.txt")), Path(output), script, how=settings(slots=int(slots))
        )
    except AegisError as error:
        sys.stderr.write(error.message + "\n")
        return error.exit_code
    return 7 if outcome.left else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
