"""The Python API on real jobs of this machine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

import aegis

from .conftest import chat

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


@pytest.fixture
def client(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> aegis.Client:
    monkeypatch.chdir(lab.work)
    return aegis.Client(lab.environ)


def deployment(**keys: object) -> dict[str, object]:
    return {"platform": "local", "log_dir": "logs", "model": "rehearsal-1B", "engine": "sim", **keys}


def test_a_deployment_from_submission_to_cleanup(client: aegis.Client, lab: Lab) -> None:
    handle = client.submit(deployment(), instances=2)
    status = client.wait_until_ready(handle, timeout_seconds=60)
    assert status.server_status is aegis.ModelStatus.READY
    assert (status.job_state, status.job_id, status.failed_reason) == ("RUNNING", handle, None)
    endpoints = client.endpoints(handle)
    assert len(endpoints) == 2
    assert status.base_url == f"http://{endpoints[0]}/v1"
    for endpoint in endpoints:
        chat(endpoint, "rehearsal-1B")

    job_id = handle.partition("://")[2]
    assert client.fetch_running_jobs() == [job_id]
    found = client.get_metrics(job_id)
    assert isinstance(found.metrics, dict)
    assert found.metrics["total_generation_tokens"] >= 2 * 8
    assert found.metrics["generation_tokens_per_sec"] >= 0
    assert [each.instance for each in client.metrics(job_id).instances] == [
        "rehearsal-1B-0",
        "rehearsal-1B-1",
    ]
    assert "2 of 2 healthy" in client.logs(handle)
    assert "rehearsal-1B" in client.logs(handle, "rehearsal-1B-0")

    with pytest.raises(aegis.AegisError, match="no filter"):
        client.cleanup_logs(lab.work / "logs")
    assert client.cleanup_logs(lab.work / "logs", model_name="rehearsal-1B") == []  # it runs
    assert client.shutdown_model(job_id) is True
    assert client.get_status(handle).server_status is aegis.ModelStatus.SHUTDOWN
    assert client.get_metrics(job_id).metrics == "Server not ready"
    assert client.fetch_running_jobs() == []
    would = client.cleanup_logs(lab.work / "logs", model_name="rehearsal-1B", dry_run=True)
    assert [folder.is_dir() for folder in would] == [True]
    assert client.cleanup_logs(lab.work / "logs", model_name="rehearsal-1B") == would
    assert not would[0].exists()


def test_a_model_of_the_catalog_with_vec_infs_options(client: aegis.Client, lab: Lab, tmp_path: Path) -> None:
    models = tmp_path / "models.yaml"
    models.write_text(
        "models:\n  tiny-chat:\n    model_family: tiny\n    model_type: LLM\n    gpus_per_node: 1\n    num_nodes: 1\n"
        "    vocab_size: 1000\n    engine: sim\n    hf_model: nobody/tiny-chat\n"
    )
    lab.environ |= {"AEGIS_PLATFORM": "local", "VEC_INF_CONFIG": str(models)}
    assert "tiny-chat" in [model.name for model in client.list_models()]
    config = client.get_model_config("tiny-chat")
    assert (config.model_family, config.time, config.cpus_per_task) == ("tiny", "08:00:00", 16)
    options = aegis.LaunchOptions(log_dir=str(tmp_path / "logs"), env="WORD=a b,OTHER=2", time="00:30:00")
    response = client.launch_model("tiny-chat", options)
    assert response.model_name == "tiny-chat"
    assert response.config["slurm_job_id"] == response.slurm_job_id
    assert "WORD: a b" in response.raw_output
    assert 'walltime: "00:30:00"' in response.raw_output
    status = client.wait_until_ready(response.slurm_job_id, timeout_seconds=60)
    assert status.model_name == "tiny-chat"
    assert status.log_dir.startswith(str(tmp_path / "logs"))
    assert not list(lab.work.iterdir())  # no endpoints file in the current folder
    assert len(client.endpoints(response.slurm_job_id)) == 1


def test_two_models_may_be_launched_one_after_the_other(client: aegis.Client, lab: Lab) -> None:
    handles = [client.submit(deployment(), endpoints_file=f"{number}.txt") for number in range(2)]
    with pytest.raises(aegis.AegisError, match=r"0\.txt"):
        client.submit(deployment(), endpoints_file="0.txt")
    for handle in handles:
        client.wait_until_ready(handle, timeout_seconds=60)
    assert len({*client.endpoints(handles[0]), *client.endpoints(handles[1])}) == 2


def test_a_server_that_cannot_start_is_a_server_error(client: aegis.Client) -> None:
    handle = client.submit(deployment(extra_sim_args=["--fail-start", "out of luck"], max_restarts=0))
    with pytest.raises(aegis.ServerError) as problem:
        client.wait_until_ready(handle, timeout_seconds=60)
    assert "ended before its servers were ready" in str(problem.value)
    status = client.get_status(handle)
    assert status.server_status is aegis.ModelStatus.FAILED
    assert status.failed_reason


def test_what_does_not_exist_has_vec_infs_errors(client: aegis.Client) -> None:
    for ask in (client.get_status, client.get_metrics, client.shutdown_model, client.wait_until_ready):
        with pytest.raises(aegis.SlurmJobError, match="there is no job"):
            ask("1; touch X")
    with pytest.raises(KeyError, match="has no model"):
        client.get_model_config("no-such-model")
    with pytest.raises(aegis.ModelConfigurationError, match="no-such-model"):
        client.launch_model("no-such-model")
    with pytest.raises(aegis.ModelConfigurationError):
        client.batch_launch_models([])
    with pytest.raises(aegis.AegisError, match="modle"):
        client.submit({"modle": "x"})


def test_a_site_that_insists_on_an_account(client: aegis.Client, lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "environment.yaml").write_text("required_args:\n  account: VEC_INF_ACCOUNT\n")
    lab.environ |= {"AEGIS_PLATFORM": "local", "VEC_INF_CONFIG_DIR": str(tmp_path)}
    with pytest.raises(ValueError, match="`account`") as problem:
        client.launch_model("Meta-Llama-3.1-8B-Instruct", aegis.LaunchOptions(engine="sim"))
    assert isinstance(problem.value, aegis.MissingRequiredFieldsError)


def test_many_are_awaited_at_once_and_a_wait_can_be_given_up(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab.work)

    async def use() -> None:
        client = aegis.AsyncClient(lab.environ)
        slow, *quick = await asyncio.gather(
            client.submit(deployment(extra_sim_args=["--startup-seconds", "60"]), endpoints_file="slow.txt"),
            *(client.submit(deployment(), endpoints_file=f"{number}.txt") for number in range(3)),
        )
        never = [asyncio.create_task(client.wait_until_ready(slow)) for _ in range(20)]
        ready = await asyncio.gather(*(client.wait_until_ready(handle) for handle in quick))
        assert [each.server_status for each in ready] == [aegis.ModelStatus.READY] * 3
        assert (await client.get_status(slow)).server_status is aegis.ModelStatus.LAUNCHING
        for task in never:
            task.cancel()
        assert len(await client.fetch_running_jobs()) == 4

    asyncio.run(use())
