"""The words of a service that outlives its jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import DeploymentError
from aegis.spec.platforms import BUILT_IN, Site
from aegis.spec.resolve import Resolved, resolve
from aegis.spec.service import format_moment, parse_until

if TYPE_CHECKING:
    from pathlib import Path

SITE = Site((BUILT_IN,), "login1", lambda command: command == "sbatch")
NOW = 1_700_000_000.0


def resolved(**flags: Any) -> Resolved:
    usual = {
        "model": "m",
        "account": "a",
        "platform": "generic-slurm",
        "walltime": "12:00:00",
        "keep_alive": True,
    }
    return resolve(None, {**usual, **flags}, {}, SITE)


def problems(**flags: Any) -> list[str]:
    with pytest.raises(DeploymentError) as error:
        resolved(**flags)
    return [str(problem) for problem in error.value.problems]


def test_a_service_has_a_name_an_end_and_an_overlap() -> None:
    found = resolved(service="chat", until="2026-12-31T18:00", overlap="1:30:00").deployment
    assert (found.service, found.until, found.overlap) == ("chat", "2026-12-31T18:00", "01:30:00")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"until": "soon"}, "--until: `soon` is neither a date and time nor a duration"),
        ({"overlap": "12:00:00"}, "--overlap: `overlap` is not shorter than the walltime"),
        ({"overlap": "ten"}, "--overlap: `ten` is no walltime"),
        ({"service": "a/b"}, "--service: `a/b` is no name of a service"),
        ({"service": "1234"}, "--service: `1234` is no name of a service"),
        ({"service": "1234.server"}, "--service: `1234.server` is no name of a service"),
        ({"walltime": None, "platform": "local"}, "--keep-alive: a service needs the walltime of its jobs"),
        ({"map": "rows.jsonl --output x"}, "--keep-alive: a job with `map` ends with its work"),
        ({"keep_alive": None, "until": "1-00:00:00"}, "--until: `until` is given, but the job does not keep"),
        (
            {"platform": "local", "registry_port": 8471},
            "two jobs on one machine cannot both have this `registry_port`",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(flags: dict[str, Any], said: str) -> None:
    assert any(said in problem for problem in problems(**flags)), problems(**flags)


def test_a_deployment_file_may_say_all_of_it(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(
        "model: m\nplatform: local\nwalltime: 01:00:00\nkeep_alive: true\nuntil: 2026-12-31T18:00\n"
    )
    found = resolve(file, {}, {}, SITE).deployment
    assert (found.keep_alive, found.until) == (True, "2026-12-31T18:00")


def test_a_duration_begins_now() -> None:
    assert parse_until("1-00:00:00", NOW) == NOW + 86400


@given(st.integers(0, 4_000_000_000))
def test_a_moment_means_the_same_everywhere(moment: int) -> None:
    assert format_moment(moment).endswith("Z")
    assert parse_until(format_moment(moment), NOW) == moment


@given(st.text())
def test_any_text_is_a_moment_or_a_plain_refusal(text: str) -> None:
    try:
        assert isinstance(parse_until(text, NOW), float)
    except ValueError as error:
        assert "neither a date and time nor a duration" in str(error)  # noqa: PT017 - either is right
