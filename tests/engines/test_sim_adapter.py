from __future__ import annotations

from aegis.engines import engine
from aegis.engines.base import PORT, Start
from aegis.placement import place
from aegis.spec.deployment import ModelEntry
from aegis.spec.platform import Node, Platform

SITE = Platform(name="s", node=Node(devices=4), engine_args={"vllm": ("--dtype", "bfloat16")})


def commands(entry: ModelEntry) -> list[list[str]]:
    instance = place([entry], SITE.node, port_start=8000).instances[0]
    return [
        list(
            engine("sim").command(
                Start(
                    entry=entry,
                    instance=instance,
                    member=member,
                    platform=SITE,
                    weights="/no/such/weights",
                    weights_are_local=True,
                    address=f"n{member.node}",
                    bind="0.0.0.0",
                    master="n0",
                    executable="python",
                    python="/v/bin/python3",
                )
            )
        )
        for member in instance.members
    ]


def test_a_file_for_vllm_is_rehearsed_with_its_arguments() -> None:
    entry = ModelEntry(
        model="org/m $(x)",
        engine="sim",
        tensor_parallel_size=2,
        extra_vllm_args=("--max-model-len", "10"),
        extra_sim_args=("--ttft", "0"),
        extra_sglang_args=("--no",),
    )
    assert commands(entry) == [
        [
            *("/v/bin/python3", "-P", "-m", "aegis", "sim", "org/m $(x)"),
            *("--served-model-name", "org/m $(x)", "--host", "0.0.0.0", "--port", PORT),
            *("--tensor-parallel-size", "2", "--max-model-len", "10", "--ttft", "0"),
        ]
    ]


def test_several_nodes_are_told_apart_as_in_vllm() -> None:
    made = commands(ModelEntry(model="m", engine="sim", tensor_parallel_size=8))
    assert ["--headless" in command for command in made] == [False, True]
    assert [command[command.index("--node-rank") + 1] for command in made] == ["0", "1"]


def test_it_looks_like_vllm_from_outside() -> None:
    sim, vllm = engine("sim"), engine("vllm")
    assert sim.name == "sim"
    assert sim.metrics == vllm.metrics
    entry = ModelEntry(model="m", engine="sim")
    assert sim.health(entry) == vllm.health(entry)
    assert set(vllm.causes) < set(sim.causes)
