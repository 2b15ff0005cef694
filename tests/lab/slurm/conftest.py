"""One Slurm for all tests of this folder, and a user of it for each."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from .lab import SlurmLab, User, missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def slurm_lab() -> Iterator[SlurmLab]:
    """A Slurm that is up for the whole session; tests take `slurm`, which tidies up behind them."""
    if reason := missing():
        pytest.skip(f"no Slurm can be started: {reason}")
    with SlurmLab() as lab:
        yield lab


@pytest.fixture
def slurm(slurm_lab: SlurmLab) -> Iterator[SlurmLab]:
    """A Slurm with all nodes idle; what a test leaves is ended."""
    yield slurm_lab
    slurm_lab.settle()


@pytest.fixture
def new_user(slurm: SlurmLab) -> Callable[[str], User]:
    """Make a user, `alice` or `bob`, with an empty home."""

    def make(name: str) -> User:
        return User(slurm, name, slurm.path / "home" / name / str(next(NUMBERS)))

    return make


@pytest.fixture
def alice(new_user: Callable[[str], User]) -> User:
    return new_user("alice")


@pytest.fixture
def bob(new_user: Callable[[str], User]) -> User:
    return new_user("bob")
