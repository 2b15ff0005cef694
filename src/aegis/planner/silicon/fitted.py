"""What was fitted to the fit half of the measured deployments, as it is carried along."""

from __future__ import annotations

import lzma
import math
from functools import cache
from statistics import fmean
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from aegis.files import write_atomically
from aegis.planner.silicon.kriging import Kernel, Read, Residual, group
from aegis.planner.silicon.mechanism import Mechanism  # noqa: TC001 - msgspec reads it
from aegis.planner.systems import DATA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from numpy.typing import ArrayLike

    from aegis.planner.silicon.kriging import Place
    from aegis.planner.silicon.mechanism import SystemClass

FITTED: Final = DATA / "silicon" / "fitted.json.xz"


class Errors(Struct, frozen=True, kw_only=True):
    """What is left over of one figure, TTFT or TPOT."""

    kernels: dict[str, Kernel]  # by mode
    residuals: tuple[Residual, ...]
    # By group, where cross-validation says that corrected predictions are worse than none: the standard deviation of the
    # logarithm of those that are not corrected (`silicon.crossed`).
    unproven: dict[str, float] = {}

    def untaken(self, place: Place, share: Callable[[], ArrayLike], loads: int) -> Read | None:
        """Return what is expected of a deployment where its correction is not taken, else nothing.

        Args:
            place: of the deployment.
            share: of the mechanism (`Residual`): it is taken back where corrections are unproven.
            loads: how many elements the answer has.
        """
        spread = self.unproven.get(group(place))
        if spread is None:
            return None
        return Read(np.broadcast_to(-np.asarray(share()), loads), np.full(loads, spread))


class Fitted(Struct, frozen=True, kw_only=True):
    """The mechanism by engine and class of systems, and what it leaves over."""

    mechanisms: dict[str, dict[str, Mechanism]]
    versions: dict[str, dict[str, float]] = {}  # factors on the host's ms of steps, by engine and version
    ttft: Errors
    tpot: Errors

    def mechanism(self, backend: str, kind: SystemClass, version: str) -> Mechanism:
        """Return what was fitted for an engine on a class of systems; a version that was not measured is like its engine."""
        found, known = self.mechanisms[backend][kind], self.versions.get(backend, {})
        factor = known.get(version, 1.0)
        host = replace(
            found.host,
            step=found.host.step * factor,
            request=found.host.request * factor,
            spread=0.0 if version in known or not known else _spread(known.values()),
        )
        return replace(found, host=host)


def _spread(factors: Iterable[float]) -> float:
    """Return how far a further version may be from its engine: as far as those that are known, ln."""
    return math.sqrt(fmean(math.log(factor) ** 2 for factor in factors))


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
