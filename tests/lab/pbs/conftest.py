"""A PBS of its own for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .lab import PbsLab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["PbsLab", "pbs", "stopped_pbs"]  # for other labs too


@pytest.fixture
def stopped_pbs(tmp_path: Path, own_environment: None) -> Iterator[PbsLab]:
    """A PBS whose server is not up yet."""
    made = PbsLab(tmp_path)
    yield made
    made.end_jobs()
    made.lab.close()
    made.close()


@pytest.fixture
def pbs(stopped_pbs: PbsLab) -> PbsLab:
    stopped_pbs.up()
    return stopped_pbs
