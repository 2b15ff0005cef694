from __future__ import annotations

from aegis.engines import engine
from aegis.engines.base import PORT, Start
from aegis.placement import place
from aegis.spec.deployment import ModelEntry
from aegis.spec.platform import Node, Platform

SITE = Platform(
    name="s", node=Node(devices=4), engine_args={"sglang": ("--dtype", "auto"), "vllm": ("--no",)}
)


def commands(entry: ModelEntry) -> list[list[str]]:
    instance = place([entry], SITE.node, port_start=8000).instances[0]
    return [
        list(
            engine("sglang").command(
                Start(
                    entry=entry,
                    instance=instance,
                    member=member,
                    platform=SITE,
                    weights="/w",
                    weights_are_local=True,
                    address=f"n{member.node}",
                    bind="0.0.0.0",
                    master="n0",
                    executable="/v/bin/python",
                    python="python3",
                )
            )
        )
        for member in instance.members
    ]


def model(tp: int = 1, pp: int = 1, dp: int = 1, *extra: str) -> ModelEntry:
    return ModelEntry(
        model="org/m",
        engine="sglang",
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
        data_parallel_size=dp,
        extra_sglang_args=extra,
        extra_vllm_args=("--vllm-only",),
    )


HEAD = ["/v/bin/python", "-m", "sglang.launch_server", "--model-path", "/w", "--served-model-name", "org/m"]
ADDRESS = ["--host", "0.0.0.0", "--port", PORT]


def test_one_node() -> None:
    assert commands(model(2, 1, 2)) == [
        [*HEAD, *ADDRESS, "--tp-size", "2", "--dp-size", "2", "--enable-metrics", "--dtype", "auto"]
    ]


def test_attention_data_parallelism_counts_its_ranks_among_the_devices() -> None:
    [command] = commands(model(2, 1, 2, "--enable-dp-attention"))
    assert command[command.index("--tp-size") + 1] == "4"
    assert command[command.index("--dp-size") + 1] == "2"
    assert "--enable-dp-attention" in command


def test_two_nodes() -> None:
    master = "n0:9000"  # the first internal port of rank 0: the engine takes the next ones too
    common = [*HEAD, *ADDRESS, "--tp-size", "4", "--pp-size", "2", "--nnodes", "2"]
    rest = ["--dist-init-addr", master, "--enable-metrics", "--dtype", "auto"]
    assert commands(model(4, 2)) == [
        [*common, "--node-rank", "0", *rest],
        [*common, "--node-rank", "1", *rest],
    ]


def test_the_users_arguments_win_and_are_not_split() -> None:
    [command] = commands(model(1, 1, 1, "--dtype=float16", "--json", '{"a": "b c"}'))
    assert command[-3:] == ["--dtype=float16", "--json", '{"a": "b c"}']
    assert "auto" not in command
    assert "--vllm-only" not in command


def test_health_is_that_of_an_openai_server() -> None:
    health = engine("sglang").health(model())
    assert (health.path, health.canary_path) == ("/health", "/v1/completions")
    assert health.canary["max_tokens"] == 1
    assert health.canary["model"] == "org/m"


def test_flags_that_keys_set_are_reserved() -> None:
    [command] = commands(model(2, 2, 1))
    flags = {arg for arg in command if arg.startswith("--")} - {"--model-path", "--enable-metrics", "--dtype"}
    assert flags <= set(engine("sglang").reserved)
