"""One run: what is left of the inputs, in an output directory that is its own for that time."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from aegis.errors import ConfigError
from aegis.files import PRIVATE, write_atomically
from aegis.mapper.files.inputs import Inputs, common_base, look, named
from aegis.mapper.files.ledger import FOLDER, Ledger
from aegis.mapper.files.publish import ENDINGS, LOG, remove

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aegis.mapper.files.script import Script
    from aegis.mapper.files.work import Settings


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of the files."""

    files: int
    done: int  # failed ones among them
    failed: int
    left: int  # for the same command to continue with
    reasons: tuple[str, ...] = ()  # of some that failed in this run


class FilesRun:
    """Files on their way into an output directory; to be used with `with`.

    Args:
        script: the program.
        paths: of the inputs; each is looked at once.
        output: the directory of the results.
        settings: how they are worked on.
        retry_failed: do those again that failed in an earlier run.

    Raises:
        ConfigError: inputs are wrong, or the results in that directory are of something else.
        SiteError: another run works there, or the file system refuses.
    """

    def __init__(
        self,
        script: Script,
        paths: Iterable[Path],
        output: Path,
        settings: Settings,
        *,
        retry_failed: bool = False,
    ) -> None:
        self.script, self.settings = script, settings
        self.output = Path(os.path.abspath(output))  # noqa: PTH100 - links stay as the user wrote them
        if self.output.exists() and not self.output.is_dir():
            raise ConfigError(f"{output} is no directory", hint="results of files go into one: --output DIR")
        looked = look(paths, str(self.output))
        self.ledger = Ledger(self.output, {"script": script.text, "archive": settings.form})
        try:
            self._compare(looked, retry_failed=retry_failed)
            self.folder = self._make_folder()
        except BaseException:
            self.ledger.close()
            raise

    def _compare(self, looked: list[tuple[str, int, int]], *, retry_failed: bool) -> None:
        """Tell what is left to do from what is done."""
        base = self.ledger.base or common_base(looked)
        left = []
        self.finished = 0  # of what is left: done, or failed
        self.reasons: list[str] = []  # of some that failed
        self.failed = self.skipped = self.skipped_bytes = self.changed = 0
        for entry in named(looked, base, (ENDINGS[self.settings.form], LOG), str(self.output)):
            state = self.ledger.state(entry)
            if state is None or (state.failed and retry_failed):
                self.changed += self.ledger.changed(entry)
                left.append(entry)
            else:
                self.failed += state.failed
                self.skipped += 1
                self.skipped_bytes += entry.size
        self.ledger.begin(base)
        self.ledger.forget()
        self.inputs = Inputs(base, left)
        self.bytes = self.skipped_bytes + sum(self.inputs.sizes)

    def _make_folder(self) -> Path:
        """Make the folder of this run alone, and take away what killed ones left: their workers write no more."""
        above = self.output / FOLDER
        for former in above.glob("run-*"):
            remove(former)
        folder = above / f"run-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        (folder / "parts").mkdir()
        if self.settings.key and not self.settings.key_file:
            write_atomically(folder / "key", self.settings.key, PRIVATE)
        return folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.ledger.close()

    def outcome(self) -> Outcome:
        """Return what became of the files."""
        files, done = self.skipped + len(self.inputs), self.skipped + self.finished
        return Outcome(
            files=files, done=done, failed=self.failed, left=files - done, reasons=tuple(self.reasons)
        )
