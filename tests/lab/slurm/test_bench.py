"""`aegis bench` beside the servers of a job: a stand-in for vllm on the nodes of a real Slurm, started by the real srun."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from .fleet import Fleet

if TYPE_CHECKING:
    from .lab import User

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]
# Which node it ran on, and for which endpoint, is in the result
VLLM = """#!{python}
import json, os, sys
words = sys.argv[1:]
after = lambda flag: words[words.index(flag) + 1]
if "fail" in words and os.environ["SLURMD_NODENAME"] == "node2":
    sys.exit("ValueError: not on this node")
with open(os.path.join(after("--result-dir"), after("--result-filename")), "w") as file:
    said = {{"node": os.environ["SLURMD_NODENAME"], "host": after("--host"), "key": os.environ["OPENAI_API_KEY"]}}
    json.dump({{"completed": 1, "failed": 0, "num_prompts": 1, "duration": 1.0, "said": said}}, file)
"""


@pytest.fixture
def fleet(alice: User) -> Fleet:
    return Fleet(alice)


def test_each_endpoint_is_measured_on_its_own_node(fleet: Fleet) -> None:
    handle, endpoints = fleet.serve(instances=2)
    programs = fleet.work / "programs"
    fleet.user.run("mkdir", "-p", programs)
    fleet.user.run("tee", programs / "vllm", text=VLLM.format(python=sys.executable))
    fleet.user.run("chmod", "755", programs / "vllm")
    within = {
        "SLURM_JOB_ID": handle.partition("://")[2],
        "SLURM_JOB_NODELIST": "node[1-4]",
        "PATH": f"{programs}:{fleet.lab.environ['PATH']}",
        "VLLM_API_KEY": "very-secret",
    }
    words = ("bench", handle, "--platform", "generic-slurm", "--json")
    found = json.loads(fleet.aegis(*words, environ=within).out)
    assert found["launcher"] == "srun"
    assert [each["endpoint"] for each in found["endpoints"]] == endpoints
    for each in found["endpoints"]:
        said = each["vllm"]["said"]
        assert (said["node"], said["key"]) == (each["node"], "very-secret")
        assert each["endpoint"].startswith(said["host"])
    assert len({each["node"] for each in found["endpoints"]}) == 2
    failed = json.loads(fleet.aegis(*words, "--", "fail", environ=within, code=7).out)["endpoints"]
    assert [each["error"] for each in failed if each["error"]] == [
        "vllm bench serve ended with 1: ValueError: not on this node"
    ]
    fleet.aegis("shutdown", handle)
