"""What pages of metrics say: recorded ones, older and other engines, restarts, nonsense."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.counts import Histogram
from aegis.engines import engine
from aegis.engines.base import METRICS, load_names
from aegis.fleet.agent.load import HISTOGRAMS, parse_metrics
from aegis.fleet.metrics.exposition import samples
from aegis.fleet.metrics.figures import figures
from aegis.fleet.metrics.reading import Reading, read

RECORDED = (Path(__file__).parents[1] / "fixtures" / "vllm" / "metrics.txt").read_text()

OLDER_VLLM = """\
vllm:num_requests_running{model_name="m"} 3
vllm:num_requests_waiting{model_name="m"} 2
vllm:num_requests_swapped{model_name="m"} 1
vllm:gpu_cache_usage_perc{model_name="m"} 0.25
vllm:cpu_cache_usage_perc{model_name="m"} 0.5
vllm:gpu_prefix_cache_hit_rate{model_name="m"} 0.75
vllm:prompt_tokens_total{model_name="m"} 100
vllm:generation_tokens_total{model_name="m"} 50
vllm:request_success_total{finished_reason="stop",model_name="m"} 4
vllm:time_per_output_token_seconds_bucket{le="0.1",model_name="m"} 10
vllm:time_per_output_token_seconds_bucket{le="+Inf",model_name="m"} 10
vllm:time_per_output_token_seconds_sum{model_name="m"} 0.5
vllm:time_per_output_token_seconds_count{model_name="m"} 10
"""

SGLANG = """\
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 5
sglang:num_queue_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 7
sglang:token_usage{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 0.28
sglang:cache_hit_rate{model_name="m",tp_rank="0"} 0.1
sglang:prompt_tokens_total{is_streaming="false",model_name="m"} 600
sglang:prompt_tokens_total{is_streaming="true",model_name="m"} 200
sglang:generation_tokens_total{is_streaming="true",model_name="m"} 90
sglang:cached_tokens_total{cache_source="device",model_name="m"} 100
sglang:cached_tokens_total{cache_source="host",model_name="m"} 100
sglang:realtime_tokens_total{mode="prefill_compute",model_name="m"} 700
sglang:realtime_tokens_total{mode="prefill_cache",model_name="m"} 300
sglang:realtime_tokens_total{mode="decode",model_name="m"} 150
sglang:num_requests_total{is_streaming="true",model_name="m"} 9
sglang:num_aborted_requests_total{model_name="m"} 2
sglang:time_to_first_token_seconds_bucket{is_streaming="true",le="0.5",model_name="m"} 8
sglang:time_to_first_token_seconds_bucket{is_streaming="true",le="+Inf",model_name="m"} 8
sglang:time_to_first_token_seconds_sum{is_streaming="true",model_name="m"} 2.0
sglang:time_to_first_token_seconds_count{is_streaming="true",model_name="m"} 8
"""


def once(*pages: str) -> dict[str, float]:
    """Return the figures of instances that were seen once."""
    return figures([(None, read(page, 0.0)) for page in pages]).metrics


# ------------------------------------------------------------------------------------------- one page


def test_the_page_of_a_real_server_under_the_keys_of_vec_inf() -> None:
    found = once(RECORDED)
    assert found["total_prompt_tokens"] == 3399
    assert found["total_generation_tokens"] == 2024
    assert found["successful_requests_total"] == 60
    assert found["finished_requests_length"] == 60
    assert found["request_latency_count"] == 60
    assert found["avg_request_latency"] == pytest.approx(4.5959 / 60, abs=1e-4)
    assert found["queue_time_sum"] == pytest.approx(0.00097, abs=1e-5)
    assert (found["requests_running"], found["requests_waiting"], found["gpu_cache_usage"]) == (0, 0, 0)
    assert "requests_swapped" not in found  # current vLLM does not swap: nothing is made up
    assert "prompt_tokens_per_sec" not in found  # one look has no rate


def test_the_latencies_of_a_real_server() -> None:
    found = figures([(None, read(RECORDED, 0.0))]).latencies
    first, between = found["time_to_first_token"].total, found["time_per_output_token"].total
    assert first is not None
    assert between is not None
    assert (first.count, between.count) == (60, 1964)
    assert first.mean == pytest.approx(0.41247 / 60, rel=1e-4)
    assert 0.005 < first.p50 < first.p90 <= 0.01 < first.p99 <= 0.06
    assert found["time_to_first_token"].window is None


def test_the_names_of_older_vllm() -> None:
    found = once(OLDER_VLLM)
    assert (found["requests_running"], found["requests_swapped"]) == (3, 1)
    assert (found["gpu_cache_usage"], found["cpu_cache_usage"]) == (0.25, 0.5)
    assert found["prefix_cache_hit_rate"] == 0.75
    latency = figures([(None, read(OLDER_VLLM, 0.0))]).latencies["time_per_output_token"].total
    assert latency is not None
    assert latency.mean == 0.05


def test_where_a_page_has_the_current_and_the_older_name_the_current_one_counts_alone() -> None:
    page = 'vllm:kv_cache_usage_perc{engine="0"} 0.5\nvllm:gpu_cache_usage_perc{engine="0"} 0.5\n'
    assert once(page)["gpu_cache_usage"] == 0.5


def test_the_names_of_sglang() -> None:
    found = once(SGLANG)
    assert (found["requests_running"], found["requests_waiting"]) == (5, 7)
    assert found["gpu_cache_usage"] == 0.28
    assert (found["total_prompt_tokens"], found["total_generation_tokens"]) == (800, 90)
    assert found["prefix_cache_hit_rate"] == 0.25
    assert (found["successful_requests_total"], found["aborted_requests_total"]) == (9, 2)
    latency = figures([(None, read(SGLANG, 0.0))]).latencies["time_to_first_token"].total
    assert latency is not None
    assert latency.mean == 0.25


def test_tokens_per_second_of_sglang_are_those_in_the_making_not_those_of_finished_requests() -> None:
    later = SGLANG.replace('mode="decode",model_name="m"} 150', 'mode="decode",model_name="m"} 190').replace(
        'mode="prefill_cache",model_name="m"} 300', 'mode="prefill_cache",model_name="m"} 310'
    )
    found = figures([(read(SGLANG, 0.0), read(later, 2.0))]).metrics
    assert (found["generation_tokens_per_sec"], found["prompt_tokens_per_sec"]) == (20, 5)


def test_ranks_of_one_replica_tell_the_same_once_and_replicas_are_summed() -> None:
    page = "".join(
        f'sglang:num_running_reqs{{dp_rank="{dp}",tp_rank="{tp}"}} {4 + dp}\n'
        for dp in range(2)
        for tp in range(2)
    )
    assert once(page)["requests_running"] == 4 + 5


def test_the_queue_of_each_priority_is_part_of_the_whole() -> None:
    page = 'sglang:num_queue_reqs{priority=""} 5\nsglang:num_queue_reqs{priority="1"} 3\n'
    assert once(page)["requests_waiting"] == 5


def test_labels_are_summed_whatever_they_hold() -> None:
    page = (
        'vllm:num_requests_running{engine="0",model_name="a } 99 \\" {x} \u2028"} 2\n'
        'vllm:num_requests_running{engine="1",model_name="b\\\\"} 3 1700000000000\n'
    )
    assert once(page)["requests_running"] == 5
    names = [
        sample.labels["model_name"] for sample in samples(page, ["vllm:num_requests_running"]).popitem()[1]
    ]
    assert names == ['a } 99 " {x} \u2028', "b\\"]


def test_requests_that_were_aborted_have_not_succeeded() -> None:
    page = "".join(
        f'vllm:request_success_total{{engine="{engine}",finished_reason="{reason}"}} {count}\n'
        for engine in range(2)
        for reason, count in (("stop", 5), ("length", 3), ("abort", 2), ("error", 1))
    )
    found = once(page)
    assert found["successful_requests_total"] == 16
    assert (found["finished_requests_stop"], found["finished_requests_abort"]) == (10, 4)


def test_a_hit_rate_of_minus_one_is_none() -> None:
    assert "prefix_cache_hit_rate" not in once("vllm:gpu_prefix_cache_hit_rate -1\n")


# ------------------------------------------------------------------------------------------- several instances


def usage(share: float, blocks: int | None) -> str:
    info = f'vllm:cache_config_info{{block_size="16",engine="0",num_gpu_blocks="{blocks}"}} 1\n'
    return (info if blocks else "") + f'vllm:kv_cache_usage_perc{{engine="0"}} {share}\n'


def test_a_larger_cache_weighs_more() -> None:
    assert once(usage(1.0, 100), usage(0.0, 300))["gpu_cache_usage"] == 0.25


def test_caches_weigh_alike_where_one_does_not_tell_its_size() -> None:
    assert once(usage(1.0, 100), usage(0.0, None))["gpu_cache_usage"] == 0.5


def test_the_caches_of_replicas_in_one_server_are_averaged() -> None:
    page = (
        'vllm:kv_cache_usage_perc{engine="0"} 0.9\nvllm:kv_cache_usage_perc{engine="1"} 0.1\n'
        'vllm:cache_config_info{engine="0",block_size="16",num_gpu_blocks="10"} 1\n'
        'vllm:cache_config_info{engine="1",block_size="16",num_gpu_blocks="30"} 1\n'
    )
    assert once(page)["gpu_cache_usage"] == pytest.approx(0.3)


def test_engines_may_be_mixed_and_histograms_with_other_bounds_too() -> None:
    found = figures([(None, read(RECORDED, 0.0)), (None, read(SGLANG, 0.0))])
    assert found.metrics["total_prompt_tokens"] == 3399 + 800
    latency = found.latencies["time_to_first_token"].total
    assert latency is not None
    assert latency.count == 68


# ------------------------------------------------------------------------------------------- two looks


def page(tokens: int, requests: int = 0, started: float = 1000.0) -> str:
    return (
        f"process_start_time_seconds {started}\n"
        f'vllm:prompt_tokens_total{{engine="0"}} {tokens}\nvllm:generation_tokens_total{{engine="0"}} {2 * tokens}\n'
        f'vllm:request_success_total{{finished_reason="stop"}} {requests}\n'
        f'vllm:e2e_request_latency_seconds_bucket{{le="1.0"}} {requests}\n'
        f'vllm:e2e_request_latency_seconds_bucket{{le="+Inf"}} {requests}\n'
        f"vllm:e2e_request_latency_seconds_sum {0.5 * requests}\n"
        f"vllm:e2e_request_latency_seconds_count {requests}\n"
    )


def test_rates_are_those_between_two_looks_by_the_clock_of_each_instance() -> None:
    found = figures(
        [
            (read(page(100), 10.0), read(page(150, 6), 12.0)),
            (read(page(1000), 10.0), read(page(1040), 14.0)),
        ]
    )
    assert found.metrics["prompt_tokens_per_sec"] == 25 + 10
    assert found.metrics["generation_tokens_per_sec"] == 50 + 20
    assert found.metrics["requests_per_sec"] == 3
    assert found.window_seconds == 4


def test_an_instance_that_was_seen_once_has_no_rate_but_counts() -> None:
    found = figures([(read(page(100), 0.0), read(page(110), 1.0)), (None, read(page(5000), 1.0))]).metrics
    assert found["prompt_tokens_per_sec"] == 10
    assert found["total_prompt_tokens"] == 5110


def test_a_restarted_server_has_no_negative_rate() -> None:
    found = figures([(read(page(1000, 9), 0.0), read(page(30, 1), 2.0))])
    assert found.metrics["prompt_tokens_per_sec"] == 15
    latency = found.latencies["request_latency"].window
    assert latency is not None
    assert latency.count == 1


def test_a_server_that_restarted_and_overtook_its_past_is_seen_by_its_start() -> None:
    found = figures([(read(page(1000), 0.0), read(page(1010, started=2000.0), 2.0))]).metrics
    assert found["prompt_tokens_per_sec"] == 505


def test_a_window_has_the_latencies_of_its_own_requests() -> None:
    before = page(0, 10)
    after = before.replace('le="+Inf"} 10', 'le="+Inf"} 12').replace("sum 5.0", "sum 25.0")
    found = figures([(read(before, 0.0), read(after.replace("count 10", "count 12"), 1.0))])
    latency = found.latencies["request_latency"].window
    assert latency is not None
    assert (latency.count, latency.mean, latency.p50) == (2, 10.0, 1.0)  # above the last bound: that bound


def test_nothing_in_the_window_is_nothing() -> None:
    found = figures([(read(page(5, 1), 0.0), read(page(5, 1), 1.0))])
    assert found.latencies["request_latency"].window is None
    assert found.latencies["request_latency"].total is not None
    assert found.metrics["requests_per_sec"] == 0


# ------------------------------------------------------------------------------------------- any text


@given(st.text() | st.binary().map(lambda raw: raw.decode(errors="replace")))
def test_any_text_can_be_read(text: str) -> None:
    read(text, 0.0)
    read(f"vllm:kv_cache_usage_perc{text}", 0.0)
    read(f'vllm:request_success_total{{finished_reason="{text}"}} 1', 0.0)


LINES = st.lists(
    st.builds(
        "{}{} {}".format,
        st.sampled_from(
            [
                name.partition("{")[0] + end
                for kind in ("vllm", "sglang")
                for names in engine(kind).metrics.values()
                for name in names
                for end in ("", "_bucket", "_sum", "_count")
            ]
            + ["process_start_time_seconds", "sglang:max_total_num_tokens"]
        ),
        st.sampled_from(
            ["", '{le="1"}', '{le="+Inf"}', '{le="NaN"}', '{engine="1"}', '{finished_reason="x"}']
        ),
        st.sampled_from(["0", "-1", "5", "1e308", "NaN", "+Inf", "-Inf", "1e400", "", "x"]),
    )
)


@given(LINES, LINES)
def test_any_numbers_make_figures_that_are_numbers(before: list[str], after: list[str]) -> None:
    found = figures([(read("\n".join(before), 0.0), read("\n".join(after), 1.0))])
    for name, value in found.metrics.items():
        assert not math.isnan(value), name


@given(
    st.dictionaries(st.floats(0.001, 1e3), st.integers(1, 50).map(float), min_size=1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_quantiles_rise_within_the_bounds(buckets: dict[float, float], a: float, b: float) -> None:
    histogram = Histogram(buckets, sum(bound * n for bound, n in buckets.items()))
    low, high = histogram.quantile(min(a, b)), histogram.quantile(max(a, b))
    assert 0 <= low <= high * (1 + 1e-9) <= max(buckets) * (1 + 1e-9) + 1e-9


def test_a_quantile_is_not_above_what_the_mean_allows() -> None:
    one_bucket = Histogram({0.3: 100.0}, 1.0)  # all below 0.3 s, and 10 ms on average
    assert one_bucket.quantile(0.5) == 0.02
    assert one_bucket.quantile(0.9) == pytest.approx(0.1)


def test_a_long_line_without_an_end_is_read_in_no_time() -> None:
    read('vllm:num_requests_running{a="' + '\\"' * 100_000, 0.0)
    read("vllm:num_requests_running{" + 'a="b",' * 50_000, 0.0)


# ------------------------------------------------------------------------------------------- the engines' names


@pytest.mark.parametrize("kind", ["vllm", "sglang", "sim"])
def test_every_engine_names_every_quantity(kind: str) -> None:
    assert set(engine(kind).metrics) == set(METRICS)


@pytest.mark.parametrize(("page", "kind"), [(RECORDED, "vllm"), (OLDER_VLLM, "vllm"), (SGLANG, "sglang")])
def test_the_agent_reads_a_page_as_we_do(page: str, kind: str) -> None:
    names = {name: list(group) for name, group in load_names(engine(kind).metrics).items()}
    load = parse_metrics(page, names)
    reading = read(page, 0.0)
    ours = {**reading.values, "prompt_tokens": reading.values["prompt_progress"]}
    ours["generation_tokens"] = reading.values["generation_progress"]
    numbers = {name: value for name, value in load.items() if name not in HISTOGRAMS}
    assert numbers == {name: value for name, value in ours.items() if name in names}
    for name in HISTOGRAMS:
        told, known = load.get(name), reading.latencies.get(name)
        assert (told is None) == (known is None)
        if told and known:
            theirs = Histogram({float(bound): n for bound, n in told["buckets"].items()}, told["sum"])
            assert (theirs.count, theirs.sum) == (known.count, known.sum)
            assert [theirs.quantile(q) for q in (0.1, 0.5, 0.99)] == [
                known.quantile(q) for q in (0.1, 0.5, 0.99)
            ]


@pytest.mark.parametrize("kind", ["vllm", "sglang", "sim"])
def test_the_agent_counts_what_ranks_tell_alike_once(kind: str) -> None:
    names = {name: list(group) for name, group in load_names(engine(kind).metrics).items()}
    running, kv_cache = names["running"][0], names["kv_cache"][0]
    page = "".join(
        f'{running}{{dp_rank="{dp}",tp_rank="{tp}"}} 4\n{kv_cache}{{dp_rank="{dp}",tp_rank="{tp}"}} 0.{dp}\n'
        for dp in (2, 4)
        for tp in range(8)
    )
    page += f'{running}{{dp_rank="2",priority="7"}} 3\n'
    assert parse_metrics(page, names) == pytest.approx({"running": 8.0, "kv_cache": 0.3})


def test_a_reading_without_counters_continues() -> None:
    assert Reading(taken=1.0).counted.continues(Reading(taken=0.0).counted)
