"""What every job script has in common: go to the directory, set up, launch the deployment that stands in the script."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from aegis import __version__

if TYPE_CHECKING:
    from aegis.schedulers.base import JobRequest


def script(request: JobRequest, directives: tuple[str, ...] = ()) -> str:
    """Return the job script; every value in it is quoted."""
    end = _delimiter(request.deployment)
    lines = [
        "#!/bin/bash -l" if request.setup else "#!/bin/bash",
        *directives,
        f"# Job {_comment(request.name)}, written by aegis {__version__}.",
        "# The deployment below is resolved: no file, flag or AEGIS_* variable changes it any more.",
        "",
        f"cd -- {shlex.quote(request.work_dir)} || exit 3",
        *request.setup,
        # -P: a folder `aegis` or a file `types.py` in the working directory is not imported
        f"exec {shlex.quote(request.python)} -P -m aegis launch --config - --no-environment <<'{end}'",
        request.deployment.rstrip("\n"),
        end,
        "",
    ]
    return "\n".join(lines)


def _comment(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def _delimiter(text: str) -> str:
    """Return a line that the text does not have."""
    lines = set(text.splitlines())
    end = "AEGIS_DEPLOYMENT"
    while end in lines:
        end += "_"
    return end
