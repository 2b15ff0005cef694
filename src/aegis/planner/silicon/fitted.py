"""What was fitted to the fit half of the measured deployments, as it is carried along."""

from __future__ import annotations

import lzma
from functools import cache
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from aegis.files import write_atomically
from aegis.planner.silicon.kriging import Kernel, Residual  # noqa: TC001 - msgspec reads it
from aegis.planner.silicon.mechanism import Mechanism  # noqa: TC001 - msgspec reads it
from aegis.planner.systems import DATA

if TYPE_CHECKING:
    from pathlib import Path

    from aegis.planner.silicon.mechanism import SystemClass

FITTED: Final = DATA / "silicon" / "fitted.json.xz"


class Errors(Struct, frozen=True, kw_only=True):
    """What is left over of one figure, TTFT or TPOT."""

    kernel: Kernel
    residuals: tuple[Residual, ...]


class Fitted(Struct, frozen=True, kw_only=True):
    """The mechanism by engine and class of systems, and what it leaves over."""

    mechanisms: dict[str, dict[str, Mechanism]]
    ttft: Errors
    tpot: Errors

    def mechanism(self, backend: str, kind: SystemClass) -> Mechanism:
        """Return what was fitted for an engine on a class of systems."""
        return self.mechanisms[backend][kind]


@cache
def fitted() -> Fitted:
    """Return what is carried along."""
    return msgspec.json.decode(lzma.decompress(FITTED.read_bytes()), type=Fitted)


def write(what: Fitted, file: Path = FITTED) -> None:
    """Write what was fitted, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    write_atomically(
        file, lzma.compress(msgspec.json.encode(what), preset=9 | lzma.PRESET_EXTREME), mode=0o644
    )
