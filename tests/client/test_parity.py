"""The client is vec-inf's, name by name; and the one for asyncio is the other."""

from __future__ import annotations

import builtins
import dataclasses
import inspect
import json
import os
import subprocess
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import aegis
from aegis.client import asynchronous, client, errors, models
from aegis.errors import AegisError
from tests.client import api_table

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "vec-inf" / "api.json").read_text()
)
PEERS = Path(
    os.environ.get("AEGIS_BENCH_PEERS")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aegis" / "peers"
)
PEER = PEERS / "vec-inf==0.9.0"


@pytest.mark.skipif(not (PEER / "bin" / "vec-inf").exists(), reason="vec-inf comes with scripts/bench")
def test_the_recorded_table_is_that_of_vec_inf() -> None:
    done = subprocess.run(
        [PEER / "bin" / "python", api_table.__file__], capture_output=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == RECORDED


@pytest.mark.parametrize("name", RECORDED["methods"])
def test_each_method_takes_what_vec_infs_takes(name: str) -> None:
    assert api_table.methods(aegis.Client)[name] == RECORDED["methods"][name]


@pytest.mark.parametrize("name", RECORDED["results"])
def test_each_result_begins_with_vec_infs_fields(name: str) -> None:
    given = RECORDED["results"][name]
    own = api_table.parameters(getattr(aegis, name))
    assert own[: len(given)] == given
    assert all("=" in field for field in own[len(given) :])
    assert dataclasses.is_dataclass(getattr(aegis, name))


@pytest.mark.parametrize("name", RECORDED["enums"])
def test_each_enumeration_has_vec_infs_members(name: str) -> None:
    kind = getattr(aegis, name)
    assert api_table.members(kind) == RECORDED["enums"][name]
    assert all(isinstance(member, str) for member in kind)


@pytest.mark.parametrize("name", RECORDED["errors"])
def test_each_error_is_one_of_aegis_and_of_vec_infs_base(name: str) -> None:
    kind = getattr(aegis, name)
    base = getattr(builtins, RECORDED["errors"][name])
    assert issubclass(kind, AegisError)
    assert issubclass(kind, base)
    problem = kind("what is wrong", hint="what to do")
    assert (str(problem), problem.message, problem.hint) == ("what is wrong", "what is wrong", "what to do")


def test_a_model_has_vec_infs_fields_in_their_order() -> None:
    own = [field for field in aegis.ModelConfig.__struct_fields__ if field != "context_length"]
    wanted = RECORDED["model_config"]
    assert sorted(own) == sorted(wanted)


def test_both_clients_have_the_same_methods_and_types() -> None:
    assert api_table.methods(aegis.AsyncClient) == api_table.methods(aegis.Client)
    for name in api_table.methods(aegis.Client):
        sync, other = getattr(aegis.Client, name), getattr(aegis.AsyncClient, name)
        assert inspect.iscoroutinefunction(other), name
        assert sync.__annotations__ == other.__annotations__, name
        assert other.__doc__ == f"As `Client.{name}`.", name


def test_every_method_says_what_it_raises_and_is_typed() -> None:
    for name, method in inspect.getmembers(aegis.Client, inspect.isfunction):
        if not name.startswith("_"):
            assert method.__doc__, name
            assert "return" in method.__annotations__, name


def test_errors_that_tell_more_are_still_the_commands_errors() -> None:
    exit_codes = {
        errors.ModelNotFoundError: 4,
        errors.JobNotFoundError: 4,
        errors.JobDeadlineError: 5,
        errors.ServerDeadlineError: 5,
        errors.SchedulerSilentError: 3,
        errors.SlurmJobError: 3,
        errors.MissingRequiredFieldsError: 2,
        errors.ServerError: 1,
    }
    assert {kind: kind.exit_code for kind in exit_codes} == exit_codes
    assert errors.SchedulerSilentError.transient


def test_a_status_that_nobody_knows_is_unavailable() -> None:
    assert models.ModelStatus("UNKNOWN") is models.ModelStatus.UNAVAILABLE
    with pytest.raises(ValueError, match="NOPE"):
        models.ModelStatus("NOPE")


def test_a_site_may_have_types_of_models_of_its_own() -> None:
    own = models.ModelType("Speech-To-Text")
    assert (own.name, own.value, isinstance(own, models.ModelType)) == (
        "SPEECH_TO_TEXT",
        "Speech-To-Text",
        True,
    )
    assert models.ModelType("Speech-To-Text") is own
    with pytest.raises(ValueError, match="7"):
        models.ModelType(7)


def test_public_names_resolve_for_type_checkers_too() -> None:
    assert get_type_hints(models.StatusResponse)
    assert {client.Client, asynchronous.AsyncClient} == {aegis.Client, aegis.AsyncClient}
    with pytest.raises(AttributeError, match="Cleint"):
        aegis.Cleint  # noqa: B018 - that is the test
