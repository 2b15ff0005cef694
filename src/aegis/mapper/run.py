"""One run: an input surveyed, its journal opened, rows dispatched, the output written when all are done."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Final, Self

from msgspec import Struct

from aegis.errors import ConfigError
from aegis.mapper.journal import Journal
from aegis.mapper.records import INPUT
from aegis.mapper.rows import read, survey

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from aegis.api.targets import Target
    from aegis.mapper.dispatch import Dispatcher
    from aegis.mapper.rows import Source, Survey

COMMIT_SECONDS: Final = 0.25  # what a kill of this process loses at most: its rows are done again
SYNC_SECONDS: Final = 5.0  # what a crash of the node loses at most


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of the rows."""

    rows: int
    done: int
    failed: int  # of those that are done
    left: int  # for the same command to continue with; 0: the output is there


class Run:
    """The rows of an input on their way into an output; to be used with `with`.

    Args:
        source: where the rows come from; read as a whole, and checked.
        output: where their answers go.
        retry_failed: do the rows again that failed in an earlier run.

    Raises:
        ConfigError: rows are wrong, or the output belongs to a run that was asked for something else.
        SiteError: another run works on this output, or the file system refuses.
    """

    def __init__(self, source: Source, output: Path, *, retry_failed: bool = False) -> None:
        _check_output(source, output)
        self.source = source
        self.survey = survey(source, output.parent)
        asked = {INPUT: self.survey.digest, **source.fingerprint()}
        self.journal = Journal(output, self.survey.rows, asked, retry_failed=retry_failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()

    async def work(self, dispatcher: Dispatcher) -> None:
        """Bring the rows that are left to the journal; whatever ends this, what is there is committed.

        Raises:
            AegisError: the disk is full, no instance answers, or the input changed; nothing is lost.
        """
        rows = read(self.source, self.survey.digest, self.journal.__contains__)
        feeding = asyncio.create_task(dispatcher.run(rows))
        committing = asyncio.create_task(self._keep_committing())
        try:
            await asyncio.wait({feeding, committing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (feeding, committing):
                task.cancel()
            ends = await asyncio.gather(feeding, committing, return_exceptions=True)
            self.journal.commit(sync=True)  # raises again what ended `committing`
        for end in ends:
            if isinstance(end, Exception):
                raise end

    def finish(self) -> Outcome:
        """Write the output where no row is left; return what became of the rows.

        Raises:
            AegisError: it cannot be written; nothing is lost.
        """
        journal = self.journal
        if not journal.left:
            journal.assemble()
        return Outcome(rows=journal.rows, done=journal.done, failed=journal.failed, left=journal.left)

    async def _keep_committing(self) -> None:
        synced = time.monotonic()
        while True:
            await asyncio.sleep(COMMIT_SECONDS)
            sync = time.monotonic() - synced >= SYNC_SECONDS
            await asyncio.to_thread(self.journal.commit, sync=sync)
            if sync:
                synced = time.monotonic()


def check_models(survey: Survey, targets: Iterable[Target]) -> None:
    """Refuse rows that none of these instances can answer, where all of them tell their models.

    Raises:
        ConfigError: no instance serves a model, or rows leave open which of several.
    """
    lists = [target.models for target in targets]
    if not lists or not all(lists):
        return
    served = sorted({name for names in lists for name in names})
    listed = ", ".join(served)
    unserved = [model for model in survey.models if model and model not in served]
    if unserved:
        raise ConfigError(
            f"no instance serves {', '.join(map(repr, unserved))}", hint=f"these are served: {listed}"
        )
    if "" in survey.models and len(set(lists)) > 1:
        raise ConfigError("rows name no model, and several are served", hint=f"name one of {listed}")


def _check_output(source: Source, output: Path) -> None:
    if output.is_dir() or not output.parent.is_dir():
        raise ConfigError(f"{output} cannot be written", hint="name a file in a directory that exists")
    if any(os.path.abspath(path) == os.path.abspath(output) for path in source.paths):  # noqa: PTH100 - no Path each
        raise ConfigError(f"{output} is the input", hint="write to another file")
