"""Certain problems are refused, probable ones unless the user insists; all at once."""

from __future__ import annotations

import pytest

from aegis.errors import DeploymentError, Problem
from aegis.preflight import Finding, refuse

CERTAIN = Finding(Problem("d.yaml:3", "heads cannot be split", "use 4"), certain=True)
PROBABLE = Finding(Problem("--queue", "no such queue"), certain=False)
OTHER = Finding(Problem("d.yaml:9", "weights do not fit"), certain=False)


def refusal(*found: Finding, force: bool = False) -> tuple[DeploymentError, list[str]]:
    warnings: list[str] = []
    with pytest.raises(DeploymentError) as error:
        refuse(found, force, warnings.append)
    return error.value, warnings


@pytest.mark.parametrize("force", [False, True])
def test_nothing_found_is_nothing_said(force: bool) -> None:
    warnings: list[str] = []
    refuse([], force, warnings.append)
    assert warnings == []


def test_everything_is_told_at_once_and_force_is_offered_once() -> None:
    error, warnings = refusal(PROBABLE, OTHER)
    assert error.message == "--queue: no such queue\nd.yaml:9: weights do not fit"
    assert error.hint == "--force submits anyway"
    assert warnings == []
    assert error.exit_code == 2


def test_force_is_offered_only_where_it_helps() -> None:
    error, _ = refusal(CERTAIN)
    assert error.hint is None
    error, _ = refusal(CERTAIN, PROBABLE, OTHER)
    assert error.problems == (CERTAIN.problem, PROBABLE.problem, OTHER.problem)
    assert error.hint == "--force overrides only --queue, d.yaml:9"


def test_what_is_forced_is_still_told() -> None:
    warnings: list[str] = []
    refuse([PROBABLE], True, warnings.append)
    assert warnings == ["--queue: no such queue; --force lets it pass"]


def test_nothing_forces_what_is_certain() -> None:
    error, warnings = refusal(PROBABLE, CERTAIN, force=True)
    assert error.problems == (CERTAIN.problem,)
    assert error.hint is None
    assert warnings == ["--queue: no such queue; --force lets it pass"]


def test_the_same_is_told_once() -> None:
    error, _ = refusal(CERTAIN, CERTAIN)
    assert error.problems == (CERTAIN.problem,)
