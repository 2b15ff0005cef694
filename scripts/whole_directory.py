"""A directory that is there as a whole or not at all, for the scripts that make models."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """Give a new directory next to the target, and rename it to the target when the block has ended well.

    Raises:
        SystemExit: the target exists.
    """
    if target.exists():
        raise SystemExit(f"error: {target} exists")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield draft
        draft.chmod(0o755)
        for file in draft.iterdir():
            file.chmod(0o644)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
