"""What goes wrong while the server runs: planned by flags, or injected through POST /sim/fault."""

from __future__ import annotations

import asyncio
import os
import sys
from random import Random
from typing import TYPE_CHECKING, Annotated

import msgspec

from aegis.engines.simulator import CRASH_EXIT

if TYPE_CHECKING:
    from aegis.engines.simulator import FaultPlan

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class FaultChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /sim/fault; what is left out stays as it is."""

    hang: bool | None = None
    hang_health: bool | None = None
    error_rate: Share | None = None
    reset_rate: Share | None = None
    crash: bool = False


class Faults:
    """The faults in force."""

    def __init__(self, plan: FaultPlan, seed: int) -> None:
        self.error_rate = plan.error_rate
        self.reset_rate = plan.reset_rate
        self.hanging = False  # no request gets a token
        self.deaf = False  # connections are accepted, nothing is answered
        self.arrived = 0
        self._plan = plan
        self._rng = Random(seed)  # noqa: S311 - a rehearsal must be repeatable
        self._changed = asyncio.Event()
        self._arm_hang()
        self._arm_deaf()

    def _arm_hang(self) -> None:
        if _due(self._plan.hang_after, self.arrived):
            self.hanging = True

    def _arm_deaf(self) -> None:
        if _due(self._plan.hang_health_after, self.arrived):
            self.deaf = True

    def arrive(self) -> None:
        """Count a request; crash or hang if it is the one to do so at."""
        if _due(self._plan.crash_after, self.arrived):
            crash()
        self._arm_hang()
        self.arrived += 1
        self._arm_deaf()  # the requests before it are still answered

    def fails(self) -> bool:
        """Draw whether this request is answered with an error."""
        return self.error_rate > 0 and self._rng.random() < self.error_rate

    def resets(self) -> bool:
        """Draw whether this request's connection is dropped half-way."""
        return self.reset_rate > 0 and self._rng.random() < self.reset_rate

    def change(self, wanted: FaultChange) -> None:
        """Bring a change into force, and wake what it frees."""
        self.hanging = self.hanging if wanted.hang is None else wanted.hang
        self.deaf = self.deaf if wanted.hang_health is None else wanted.hang_health
        self.error_rate = self.error_rate if wanted.error_rate is None else wanted.error_rate
        self.reset_rate = self.reset_rate if wanted.reset_rate is None else wanted.reset_rate
        self._plan = msgspec.structs.replace(
            self._plan,
            hang_after=self._plan.hang_after if wanted.hang is None else None,
            hang_health_after=self._plan.hang_health_after if wanted.hang_health is None else None,
        )
        self._changed.set()
        self._changed = asyncio.Event()

    def state(self) -> dict[str, object]:
        """Return what is in force."""
        return {
            "hang": self.hanging,
            "hang_health": self.deaf,
            "error_rate": self.error_rate,
            "reset_rate": self.reset_rate,
            "requests": self.arrived,
        }

    async def until_tokens_flow(self) -> None:
        """Wait while the engine hangs."""
        while self.hanging:
            await self._changed.wait()

    def turn_deaf(self) -> None:
        """Answer nothing from now on."""
        self.deaf = True

    async def until_answering(self) -> None:
        """Wait while nothing is answered."""
        while self.deaf:
            await self._changed.wait()


def _due(after: int | None, arrived: int) -> bool:
    return after is not None and arrived >= after


def crash() -> None:
    """End at once, as a killed engine does: nothing is closed, nobody is told."""
    sys.stderr.flush()
    os._exit(CRASH_EXIT)
