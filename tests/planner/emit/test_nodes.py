"""Which worker runs where, and the scripts that start it: run with a Python that only writes down what it is told."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from aegis.planner.emit.kubernetes import manifests, runtime_image
from aegis.planner.emit.nodes import allocate
from aegis.planner.emit.shell import node_script
from aegis.planner.emit.trtllm import engine_config
from aegis.planner.problem import Parallel

from .conftest import HOSTILE, candidate, pair, servers, workers

if TYPE_CHECKING:
    from pathlib import Path

    from aegis.planner.emit.servers import Server

FAKE = f"""#!{sys.executable}
import json, os, sys
names = ("CUDA_VISIBLE_DEVICES", "DYN_SYSTEM_PORT", "ETCD_ENDPOINTS")
said = [sys.argv[1:], {{name: os.environ.get(name) for name in names}}]
with open(os.environ["SAID"], "a") as file:
    file.write(json.dumps(said) + "\\n")
"""


def run(script: str, folder: Path, **environ: str) -> list[tuple[list[str], dict[str, str]]]:
    """Return what `python3` was told, by the order of devices."""
    for name in ("python3", "trtllm-llmapi-launch"):
        fake = folder / name
        fake.write_text(FAKE)
        fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    file = folder / "node_0_run.sh"
    file.write_text(script)
    said = folder / "said"
    path = f"{folder}:{os.environ['PATH']}"
    # `wait -n` ends with the first worker: here all of them end at once
    whole = file.read_text().replace("wait -n\n", "wait\n")
    file.write_text(whole)
    done = subprocess.run(
        ["bash", str(file)],
        env={"PATH": path, "SAID": str(said), **environ},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in said.read_text().splitlines()]
    return sorted(found, key=lambda each: each[1]["CUDA_VISIBLE_DEVICES"] or "")


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 5)), min_size=1, max_size=3),
    st.integers(1, 4),
)
def test_no_gpu_is_given_twice_and_no_worker_forgotten(kinds: list[tuple[int, int]], replicas: int) -> None:
    (base,) = servers()
    made = [
        replace(base, split=Parallel(tp=gpus), count=count, role=role)
        for (gpus, count), role in zip(kinds, ("prefill", "decode", "agg"), strict=False)
    ]
    nodes = allocate(made, replicas)
    for places in nodes:
        used = [gpu for place in places for gpu in place.gpus]
        assert len(used) == len(set(used))
        assert set(used) <= set(range(8))
    for server in made:
        parts = [place for places in nodes for place in places if place.server is server]
        assert sum(len(place.gpus) for place in parts) == server.gpus * server.count * replicas
        assert {place.number for place in parts} == set(range(server.count * replicas))


def test_a_replica_stays_together() -> None:
    nodes = allocate(servers(pair()), 4)
    assert [[place.server.role for place in places] for places in nodes] == [[*["prefill"] * 4, "decode"]] * 4


@pytest.mark.parametrize("backend", ["vllm", "sglang", "trtllm"])
def test_hostile_names_reach_the_engine_unchanged(backend: str, tmp_path: Path) -> None:
    made = servers(pair(backend), backend=backend, model=HOSTILE)
    script = node_script(allocate(made, 1)[0], 0, model=HOSTILE, said=(HOSTILE,))
    frontend, *engines = run(script, tmp_path)
    assert frontend[0] == ["-m", "dynamo.frontend", "--http-port", "8000"]
    assert len(engines) == 5
    for words, environ in engines:
        assert words[:2] == ["-m", f"dynamo.{backend}"]
        assert words.count(HOSTILE) == 2  # its path, and the name it is served under
        assert environ["ETCD_ENDPOINTS"] == "0.0.0.0:2379"
    assert [environ["CUDA_VISIBLE_DEVICES"] for _, environ in engines] == ["0", "1", "2", "3", "4,5,6,7"]
    assert len({environ["DYN_SYSTEM_PORT"] for _, environ in engines}) == 5
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()


def test_the_caller_may_name_another_model(tmp_path: Path) -> None:
    (places,) = allocate(servers(), 1)
    found = run(node_script(places, 0, model="org/m"), tmp_path, MODEL_PATH="/weights/of mine")
    assert "/weights/of mine" in found[1][0]


def test_only_the_first_node_has_a_frontend_and_the_others_ask_where_it_is(tmp_path: Path) -> None:
    nodes = allocate(servers(), 4)
    script = node_script(nodes[1], 1, model="org/m")
    assert "dynamo.frontend" not in script
    assert len(run(script, tmp_path, HEAD_NODE_IP="10.0.0.1")) == 2
    done = subprocess.run(
        ["bash", "-c", script, "x"], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode != 0
    assert "the address of node 0" in done.stderr


@pytest.mark.parametrize("backend", ["vllm", "sglang", "trtllm"])
def test_a_worker_over_two_nodes_is_told_where_its_parts_meet(backend: str, tmp_path: Path) -> None:
    wide = candidate(workers(backend=backend, parallel=Parallel(tp=8, pp=2)))
    nodes = allocate(servers(wide, backend=backend), 1)
    assert [places[0].rank for places in nodes] == [0, 1]
    script = node_script(nodes[1], 1, model="org/m")
    said = run(script, tmp_path, HEAD_NODE_IP="10.0.0.1", NODE_0_IP="10.0.0.1")[0][0]
    if backend == "trtllm":
        assert said[:3] == ["python3", "-m", "dynamo.trtllm"]
    else:
        assert said[said.index("--node-rank") + 1] == "1"
        assert any("10.0.0.1" in word for word in said)


@pytest.mark.parametrize("backend", ["vllm", "sglang", "trtllm"])
def test_manifests_say_the_same_as_the_scripts(backend: str) -> None:
    made = servers(pair(backend), backend=backend, model=HOSTILE)
    files = {server.config_file: _file(server) for server in made}
    *config, graph = yaml.safe_load_all(manifests(made, 4, version="1.0.0", files=files, head=(HOSTILE,)))
    services = graph["spec"]["services"]
    frontend, prefill, decode = services.values()
    assert (prefill["replicas"], decode["replicas"]) == (16, 4)
    assert (prefill["resources"]["limits"]["gpu"], decode["resources"]["limits"]["gpu"]) == ("1", "4")
    args = decode["extraPodSpec"]["mainContainer"]["args"]
    assert HOSTILE in args
    assert frontend["componentType"] == "frontend"
    assert len(config) == (backend == "trtllm")
    if config:
        assert yaml.safe_load(config[0]["data"]["decode_config.yaml"]) == files["decode_config.yaml"]
        assert graph["metadata"]["name"].islower()


def _file(server: Server) -> dict[str, object]:
    return engine_config(server) if server.backend == "trtllm" else {}


def test_images_are_of_the_release_that_has_the_engine() -> None:
    assert runtime_image("vllm", "0.19.1").endswith("vllm-runtime:1.1.0")
    assert runtime_image("trtllm", "1.0.0rc3").endswith("tensorrtllm-runtime:0.6.1")
    assert runtime_image("sglang", "0.5.99").endswith("sglang-runtime:1.3.0")
