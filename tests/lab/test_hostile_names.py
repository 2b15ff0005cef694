"""Names that a shell, YAML or a terminal would take for something else; and secrets, which nobody may see."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import chat, request, wait_until

if TYPE_CHECKING:
    from .conftest import Job, Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(90)]
NAMES = {
    "space": "a b  c",
    "quotes": 'it\'s "quoted" \\',
    "newline": "one\ntwo",
    "substitution": "$(touch X) `touch X`",
    "commands": "; touch X; #",
    "yaml": "- {a: *b}: !!x | %",
    "delimiter": "AEGIS_DEPLOYMENT\nAEGIS_DEPLOYMENT",
    "dash": "--version",
    "unicode": "modèle-模型\u202e",
}
SECRETS = {"HF_TOKEN": "hf_secret_of_nobody", "VLLM_API_KEY": "key_secret_of_nobody"}


@pytest.fixture(autouse=True)
def nothing_is_run(lab: Lab) -> None:
    """No name is ever run: `touch X` leaves its file nowhere."""
    close = lab.close

    def checked() -> None:
        close()
        assert not list(lab.path.rglob("X"))

    lab.close = checked  # type: ignore[method-assign]


def test_models_of_one_file(lab: Lab) -> None:
    models = [{"model": f"./{name}", "served_model_name": name, "engine": "sim"} for name in NAMES.values()]
    job = lab.submit(models=models)
    services = job.services.values()
    assert sorted(each["metadata"]["model"] for each in services) == sorted(NAMES.values())
    for each in services:
        name = each["metadata"]["model"]
        assert chat(f"{each['host']}:{each['port']}", name)["model"] == name
        assert "start 1 on port" in lab.aegis("logs", job.id, "--instance", each["service_id"]).out
    assert job.status()["model_name"] == ", ".join(NAMES.values())
    overview = lab.aegis("status").out
    assert len(overview.splitlines()) == 2, "a newline in a name is no line of a table"
    assert "\u202e" not in overview


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_flags_and_folders(lab: Lab, name: str) -> None:
    lab.work = lab.path / name / "work"
    lab.work.mkdir(parents=True)
    flags = [f"--model=./{name}", f"--served-model-name={name}", f"--env=A={name}", f"--name={name}"]
    flags += [
        "--engine",
        "sim",
        "--platform",
        "local",
        f"--log-dir={name}/logs",
        f"--endpoints-file={name}.txt",
    ]
    answer = lab.aegis("submit", "--wait", *flags)
    job = lab.job(answer.err.partition("submitted ")[2].split()[0])
    (endpoint,) = answer.out.split()
    assert chat(endpoint, name)["model"] == name
    assert (lab.work / name / "logs") in job.run_dir.parents
    assert (lab.work / f"{name}.txt").read_text() == answer.out
    (service,) = job.services.values()
    environ = Path(f"/proc/{service['metadata']['pid']}/environ").read_bytes().split(b"\0")
    assert f"A={name}".encode() in environ
    assert "healthy" in lab.aegis("logs", job.handle).out
    lab.aegis("shutdown", f"--endpoints-file={name}.txt")
    assert not (lab.work / f"{name}.txt").exists()


def test_placeholders_of_the_agent_are_words_like_any(lab: Lab) -> None:
    name = "{aegis:port}"
    job = lab.submit(model=f"./{name}", served_model_name=name)
    assert chat(job.endpoints[0], name)["model"] == name


def test_a_model_that_looks_like_a_flag_is_refused(lab: Lab) -> None:
    said = lab.aegis("launch", "--config", lab.deployment(model="--version"), code=2)
    assert "`--version` looks like a flag" in said.err
    assert lab.is_empty()


def test_a_name_with_a_slash_in_it_stays_in_the_log_dir(lab: Lab) -> None:
    job = lab.submit(model="sim", served_model_name="../../../outside/..")
    assert (lab.work / "logs") in job.run_dir.parents
    assert chat(job.endpoints[0], "../../../outside/..")["choices"]


def test_code_in_the_working_directory_is_not_run(lab: Lab) -> None:
    (lab.work / "aegis").mkdir()
    for name in ("aegis/__init__.py", "types.py", "click.py", "json.py", "sitecustomize.py"):
        (lab.work / name).write_text("raise SystemExit('foreign code was run')")
    config = lab.deployment()
    answer = lab.aegis("submit", "--wait", "--config", config)
    job = lab.job(answer.err.partition("submitted ")[2].split()[0])
    assert chat(job.endpoints[0], "rehearsal-1B")["choices"]


def files_with(folder: Path, secret: str) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]


def test_secrets_reach_the_engine_and_nobody_else(lab: Lab) -> None:
    lab.environ |= SECRETS
    job = lab.submit(instances=1)
    assert job.states() == {"rehearsal-1B-0": "healthy"}
    engine = job.engine("rehearsal-1B-0")
    environ = Path(f"/proc/{engine.pid}/environ").read_bytes().split(b"\0")
    shown = [
        lab.aegis("status", "--json").out,
        lab.aegis("registry", "list", "--registry-url", f"http://{job.registry}", "--json").out,
    ]
    token = (job.run_dir / "registry.token").read_text().strip()
    for name, secret in {**SECRETS, "": token}.items():
        if name:
            assert f"{name}={secret}".encode() in environ
        else:
            assert secret.encode() not in b"".join(environ), "the registry's token is none of its business"
        assert not [each for each in lab.processes() if secret in each.command]
        assert not [text for text in shown if secret in text]
        found = files_with(lab.path, secret)
        assert found
        assert {stat.S_IMODE(file.stat().st_mode) for file in found} == {0o600}, found
    lab.aegis("shutdown", job.handle)
    for secret in (*SECRETS.values(), token):
        assert files_with(lab.path, secret) == []


def test_secrets_are_gone_after_a_failed_start(lab: Lab) -> None:
    lab.environ |= SECRETS
    lab.submit(extra_sim_args=["--fail-start", "x"], max_restarts=0, code=1)
    wait_until(lab.is_empty)
    for secret in SECRETS.values():
        assert files_with(lab.path, secret) == []


def test_the_api_key_is_asked_for(lab: Lab) -> None:
    lab.environ |= SECRETS
    job = lab.submit()
    with pytest.raises(AssertionError, match=r"(?i)unauthorized"):
        chat(job.endpoints[0], "rehearsal-1B")


def test_the_registry_lets_nobody_write_without_its_token(lab: Lab) -> None:
    job = lab.submit()
    body = {"node": "local", "services": []}
    assert request(job.registry, "PUT", "/nodes/local", body)[0] == 401
    assert json.dumps(sorted(job.states())) == '["rehearsal-1B-0"]'


def kept(job: Job) -> list[str]:
    return sorted(file.name for file in job.run_dir.iterdir())


def test_what_stays_of_a_run(lab: Lab) -> None:
    job = lab.submit()
    lab.aegis("shutdown", job.handle)
    stem = job.run_dir.name
    names = {
        f"{stem}.sh",
        f"{stem}.json",
        f"{stem}.out",
        f"{stem}.err",
        "fleet.jsonl",
        "instances",
        "nodes",
    }
    assert names <= set(kept(job))
    assert not {"secrets", "registry.token"} & set(kept(job))
