"""The whole report: what users of bad deployments read, all at once; and that good ones are let through quickly."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aegis.errors import DeploymentError
from aegis.preflight import refuse
from aegis.preflight.files import UnseenFiles
from aegis.preflight.report import findings

from .conftest import LLAMA_8B, LLAMA_70B, write_model
from .test_shape import NAMES, values

if TYPE_CHECKING:
    from .conftest import Desk

# name -> deployment, nodes, what is told
GOLDEN = {
    "everything wrong on aurora": (
        """\
platform: aurora
walltime: "06:00:00"
endpoints_file: gone/endpoints.txt
venv: gone-venv
port_start: 80
models:
  - model: meta-llama/Llama-3.3-70B-Instruct
    instances: 34
    tensor_parallel_size: 6
    model_source: 70B
  - model: meta-llama/Llama-3.1-8B-Instruct
    model_source: gone
  - model: org/Big
    model_source: 70B
    extra_vllm_args: [--max-model-len, "200000"]
""",
        20,
        """\
!--account: aurora takes no job without `account` (give --account, or `account:` in the deployment file)
~/d.yaml:2: 20 nodes for 06:00:00 cannot be had: 17 to 255 nodes for more than 01:00:00 do not exist on aurora (ask for at most 01:00:00 (debug-scaling), at most 16 nodes (capacity) or at least 256 nodes (prod))
~/d.yaml:5: `port_start` 80 is below 1024, where only root may serve (use 8000)
!~/d.yaml:3: the folder of the endpoints file is not there: ~/gone (make it, or choose another with --endpoints-file)
~/d.yaml:4: the virtual environment is not there: ~/gone-venv (make it, or --force if only the nodes have it)
!~/d.yaml:12: the weights of meta-llama/Llama-3.1-8B-Instruct are not there: ~/gone (give the directory that holds config.json, or a Hugging Face cache entry (models--ORG--NAME))
!~/d.yaml:9: the 64 attention heads of meta-llama/Llama-3.3-70B-Instruct cannot be split over 6 devices (use a tensor_parallel_size of 4 or 8)
~/d.yaml:15: --max-model-len 200000 is more than the 131072 tokens that org/Big was made for (use at most 131072, or set VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 in `env`)
~/d.yaml:13: the 131.4 GiB of weights of org/Big do not fit: a tile of 64.0 GiB gives 58.9 GiB (--gpu-memory-utilization 0.92) (a tensor_parallel_size of 4 holds them)""",
    ),
    "a long context on small devices": (
        """\
model: ./8B
served_model_name: llama
platform: polaris
account: science
queue: preemptable
walltime: "100:00:00"
extra_vllm_args: [--max-model-len, 128K, --gpu-memory-utilization, "0.7"]
""",
        1,
        """\
~/d.yaml:5: queue preemptable of polaris does not take 1 node for 100:00:00: it has 1-10 nodes up to 72:00:00 (capacity takes it)
~/d.yaml:7: one request of llama (--max-model-len 131072) needs 16.0 GiB of KV cache on each device, and 15.0 GiB of weights leave 13.0 GiB of 28.0 GiB (--gpu-memory-utilization 0.7) (--max-model-len 105472 or a tensor_parallel_size of 2 would fit)""",
    ),
    "a site's own weights on frontier": (
        """\
model: org/Big
model_source: 70B
tensor_parallel_size: 2
platform: frontier
queue: bacth
""",
        1,
        """\
!--account: frontier takes no job without `account` (give --account, or `account:` in the deployment file)
~/d.yaml:5: frontier is not known to have a queue `bacth` (did you mean `batch`?)
~/d.yaml:3: the 131.4 GiB of weights of org/Big over 2 devices are 65.7 GiB each, and a GCD of 64.0 GiB gives 58.9 GiB (--gpu-memory-utilization 0.92) (a tensor_parallel_size of 4 holds them)""",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_told_of_a_bad_deployment(desk: Desk, name: str) -> None:
    text, nodes, told = GOLDEN[name]
    write_model(desk.folder / "70B", LLAMA_70B, 131.4, shards=30)
    write_model(desk.folder / "8B", LLAMA_8B, 15.0, shards=4)
    assert "\n".join(desk.told(text, nodes)) == told


def test_the_refusal_holds_everything_at_once(desk: Desk) -> None:
    text, nodes, _ = GOLDEN["everything wrong on aurora"]
    write_model(desk.folder / "70B", LLAMA_70B, 131.4, shards=30)
    with pytest.raises(DeploymentError) as error:
        refuse(desk.findings(text, nodes), False, print)
    assert len(error.value.problems) == 9
    assert error.value.hint
    assert error.value.hint.startswith("--force overrides only ")
    warnings: list[str] = []
    with pytest.raises(DeploymentError) as error:
        refuse(desk.findings(text, nodes), True, warnings.append)
    assert len(error.value.problems) == 4
    assert len(warnings) == 5


GOOD = """\
platform: aurora
account: science
tensor_parallel_size: 4
models:
  - model: meta-llama/Llama-3.3-70B-Instruct
    model_source: cache/models--meta-llama--Llama-3.3-70B-Instruct
    instances: 2
    tensor_parallel_size: 8
    extra_vllm_args: [--max-model-len, "32768"]
  - model: ./8B
    instances: 4
"""


def test_where_nobody_can_look_only_the_site_s_limits_are_held_against_a_job(desk: Desk) -> None:
    text, nodes, _ = GOLDEN["everything wrong on aurora"]
    desk.files = UnseenFiles()
    assert [line.partition(": ")[0] for line in desk.told(text, nodes)] == [
        "!--account",
        "~/d.yaml:2",
        "~/d.yaml:5",
    ]


@pytest.fixture
def good(desk: Desk) -> str:
    entry = desk.folder / "cache" / "models--meta-llama--Llama-3.3-70B-Instruct"
    write_model(entry / "snapshots" / "abc", LLAMA_70B, 131.4, shards=30)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("abc")
    write_model(desk.folder / "8B", LLAMA_8B, 15.0, shards=4)
    return GOOD


def test_a_good_deployment_has_no_findings(desk: Desk, good: str) -> None:
    assert desk.told(good, nodes=2) == []


def test_it_takes_less_time_than_anybody_notices(desk: Desk, good: str) -> None:
    resolved = desk.resolve(good)

    def measured() -> float:
        began = time.perf_counter()
        findings(resolved, 2, desk.files, desk.environ)
        return time.perf_counter() - began

    assert min(measured() for _ in range(5)) < 0.02


def test_nothing_is_made_or_changed(desk: Desk, good: str) -> None:
    before = {path: path.lstat() for path in desk.folder.rglob("*")}
    resolved = desk.resolve(good)
    findings(resolved, 2, desk.files, desk.environ)
    after = {path: path.lstat() for path in desk.folder.rglob("*") if path.name != "d.yaml"}
    assert {path: stat.st_mtime_ns for path, stat in after.items()} == {
        path: stat.st_mtime_ns for path, stat in before.items()
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    config=st.dictionaries(st.sampled_from(NAMES), values),
    index=st.binary(max_size=60),
    size=st.integers(0, 9**9),
)
def test_no_model_however_strange_makes_it_fail(
    desk: Desk, config: dict[str, object], index: bytes, size: int
) -> None:
    folder = write_model(desk.folder / "m", config)
    (folder / "model.safetensors.index.json").write_bytes(index)
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.truncate(size)
    keys: dict[str, Any] = {"tensor_parallel_size": 3, "pipeline_parallel_size": 2, "data_parallel_size": 2}
    for engine in ("vllm", "sglang"):
        keys |= {"engine": engine}
        args: dict[str, Any] = {
            f"extra_{engine}_args": ["--enable-expert-parallel", "--ep-size=3", "--enable-eplb"]
        }
        desk.told(model=str(folder), platform="frontier", **keys, **args)
