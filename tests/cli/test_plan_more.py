"""`aegis plan estimate`, `size`, `why` and `diff`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Outcome

LLAMA = ("--model", "LLAMA3.1_8B", "--isl", "2000", "--osl", "300")
ESTIMATE = ("plan", "estimate", *LLAMA, "--system", "h100_sxm")


def test_an_estimate_shows_every_operation_of_its_steps(aegis: Callable[..., Outcome]) -> None:
    outcome = aegis(*ESTIMATE, "--tp", "2", "--batch", "32")
    assert outcome.code == 0
    assert "h100_sxm trtllm tp 2: 2 GPUs, batch 32" in outcome.out
    for said in (
        "prefill step:",
        "mixed step:",
        "decode step:",
        "generation_attention",
        "context_ar_1",
        "[GGG",
        "h host: ",
    ):
        assert said in outcome.out
    assert "GiB, fits" in outcome.out


def test_the_operations_of_a_step_add_up_to_it(aegis: Callable[..., Outcome]) -> None:
    found = json.loads(aegis(*ESTIMATE, "--batch", "8", "--json").out)
    for step in found["steps"]:
        assert sum(part["ms"] for part in step["parts"]) == pytest.approx(step["ms"])
        assert [part["kind"] for part in step["parts"] if part["bound"] == "host"] == ["host"]
    assert found["request_latency"] == pytest.approx(found["ttft"] + 299 * found["tpot"])
    assert found["tokens_per_s_user"] == pytest.approx(1000 / found["tpot"])


def test_what_is_simulated_is_what_the_formulas_say_where_answers_are_alike(
    aegis: Callable[..., Outcome],
) -> None:
    asked = (*ESTIMATE, "--tp", "2", "--batch", "1", "--batch", "24")
    for found in json.loads(aegis(*asked, "--simulate", "0", "--json").out):
        seen = found["simulated"]
        assert seen["tpot"] == pytest.approx(found["tpot"], rel=0.01)
        assert seen["ttft"] == pytest.approx(found["ttft"], rel=0.1)
        assert seen["tokens_per_s_gpu"] == pytest.approx(found["tokens_per_s_gpu"], rel=0.02)
    (_, uneven), (_, alike) = (
        json.loads(aegis(*asked, "--simulate", each, "--json").out) for each in ("60", "0")
    )
    assert uneven["simulated"]["ttft"] != alike["simulated"]["ttft"]
    assert uneven["ttft"] == alike["ttft"]
    table = aegis(*asked, "--simulate", "0").out.splitlines()
    assert "SIMULATED TTFT" in table[0]
    assert table[2].endswith(f"{alike['simulated']['tpot']:.3f} ms")
    one = aegis(*ESTIMATE, "--batch", "8", "--simulate", "20").out
    assert "simulated step by step, answers up to 20% shorter or longer" in one
    assert json.loads(aegis(*ESTIMATE, "--json").out)["simulated"] is None


def test_a_simulation_of_too_many_requests_is_refused(aegis: Callable[..., Outcome]) -> None:
    outcome = aegis(*ESTIMATE, "--batch", "5000", "--simulate", "0")
    assert outcome.code == 2
    assert "--simulate: 5000 requests, of at most 4096" in outcome.err


def test_an_estimate_that_does_not_fit_says_the_bytes(aegis: Callable[..., Outcome]) -> None:
    outcome = aegis("plan", "estimate", "--model", "meta-llama/Llama-3.1-70B", "--system", "h100_sxm")
    assert outcome.code == 1
    assert "DOES NOT FIT" in outcome.out
    assert "of one h100_sxm GPU, which has 80.0 GiB" in outcome.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--tp", "3"), "tp"),
        (("--tp", "0"), "--tp"),
        (("--gemm", "fp9"), "fp9"),
        (("--batch", "2", "--context-tokens", "4000"), "--context-tokens"),
        (("--isl", "0"), "--isl"),
        (("--context-tokens", "4001"), "--context-tokens"),
        (("--batch", "1" + "0" * 30), "--batch"),
        (("--kv-cache", "fp7"), "--kv-cache"),
        (("--dp", "2"), "--dp"),
        (("--tpot", "10"), "--tpot"),
    ],
)
def test_what_cannot_be_estimated_is_told(
    aegis: Callable[..., Outcome], flags: tuple[str, ...], said: str
) -> None:
    outcome = aegis(*ESTIMATE, *flags)
    assert outcome.code == 2
    assert said in outcome.err
    assert "internal error" not in outcome.err


def test_an_estimate_says_its_formats_and_what_was_taken(aegis: Callable[..., Outcome]) -> None:
    outcome = aegis(*ESTIMATE, "--backend-version", "0.1", "--gemm", "float16")
    assert outcome.code == 0
    assert "weights bfloat16, KV cache" in outcome.out
    assert "note: no tables of trtllm 0.1" in outcome.err
    assert "weights in" not in outcome.err


def test_tables_that_end_can_be_extended(aegis: Callable[..., Outcome]) -> None:
    lacking = aegis(*ESTIMATE, "--gemm", "int4_wo")
    assert lacking.code == 1
    assert "--database-mode HYBRID" in lacking.err
    hybrid = aegis(*ESTIMATE, "--gemm", "int4_wo", "--database-mode", "hybrid")
    assert hybrid.code == 0
    assert "estimated from the nearest" in hybrid.err


@pytest.mark.parametrize("command", ["default", "estimate", "size", "why"])
def test_help_shows_an_example_on_a_line_of_its_own(aegis: Callable[..., Outcome], command: str) -> None:
    lines = aegis("plan", command, "--help").out.splitlines()
    assert any(line.startswith(f"  aegis plan {command} --model ") for line in lines)
    assert not any("\\b" in line for line in lines)


def test_a_load_is_sized_for_machines(aegis: Callable[..., Outcome]) -> None:
    asked = ("plan", "size", *LLAMA, "--rate", "20", "--requests", "1000000", "--tpot", "50")
    offers = json.loads(aegis(*asked, "--system", "h100_sxm", "--system", "a100_sxm", "--json").out)
    assert [offer["place"]["name"] for offer in offers] == ["h100_sxm", "a100_sxm"]
    for offer in offers:
        sizing = offer["sizing"]
        assert sizing["capacity"] >= 20
        assert sizing["nodes"] * sizing["gpus_per_node"] >= sizing["gpus"]
        assert sizing["node_hours"] == pytest.approx(1_000_000 / 20 / 3600 * sizing["nodes"])


def test_a_platform_is_sized_by_its_nodes(aegis: Callable[..., Outcome]) -> None:
    outcome = aegis("plan", "size", *LLAMA, "--rate", "2000", "--tpot", "50", "--platform", "killarney")
    assert outcome.code == 0
    assert "killarney" in outcome.out
    assert "l40s" in outcome.out


def test_a_platform_is_priced_with_nodes_of_its_own(aegis: Callable[..., Outcome]) -> None:
    """Its nodes have four GPUs, those that the tables were measured on eight. A TTFT that binds would hide it."""
    asked = ("plan", "size", "--model", "meta-llama/Llama-3.1-70B", "--rate", "2", "--tpot", "40", "--json")
    plain = (*asked, "--estimator", "aic-0.12")
    (large,) = json.loads(aegis(*plain, "--system", "a100_sxm").out)
    offers = json.loads(aegis(*plain, "--platform", "perlmutter").out)
    small = next(offer for offer in offers if offer["place"]["system"] == "a100_sxm")
    assert small["place"]["gpus_per_node"] == 4
    eight = large["sizing"]["candidate"]["workers"][0]["parallel"]["tp"] == 8
    assert not eight or small["sizing"]["candidate"]["ttft"] > large["sizing"]["candidate"]["ttft"]


@pytest.mark.parametrize("mode", ["agg", "disagg"])
def test_a_load_is_sized_for_what_can_be_served(aegis: Callable[..., Outcome], mode: str) -> None:
    asked = ("plan", "size", *LLAMA, "--rate", "20", "--tpot", "50", "--system", "h100_sxm", "--json")
    (offer,) = json.loads(aegis(*asked, "--serving-mode", mode).out)
    assert offer["sizing"]["candidate"]["mode"] == mode


@pytest.mark.parametrize(
    "flags",
    [
        ("--rate", "0"),
        ("--rate", "nan"),
        ("--rate", "inf"),
        ("--rate", "1e-300"),
        ("--rate", "1", "--headroom", "1"),
        ("--rate", "1", "--requests", "0"),
        ("--rate", "1", "--system", "h999"),
        ("--rate", "1", "--isl", "0"),
        ("--rate", "1", "--model", "LAMA3.1_8B"),
        ("--rate", "1", "--platform", "nowhere"),
        ("--rate", "1", "--platform", "generic-slurm"),
    ],
)
def test_what_cannot_be_sized_is_told(aegis: Callable[..., Outcome], flags: tuple[str, ...]) -> None:
    outcome = aegis("plan", "size", *LLAMA, *flags)
    assert outcome.code == 2
    assert "internal error" not in outcome.err


def test_a_plan_says_what_binds_it(aegis: Callable[..., Outcome]) -> None:
    asked = ("plan", "why", *LLAMA, "--total-gpus", "8", "--system", "h100_sxm", "--tpot", "10")
    outcome = aegis(*asked)
    assert outcome.code == 0
    assert "bound by the TPOT target" in outcome.out
    assert "decode step" in outcome.out
    assert "target x" in outcome.out
    reasons = json.loads(aegis(*asked, "--json").out)
    assert {reason["name"] for reason in reasons} == {"agg", "disagg"}
    for reason in reasons:
        assert all(sum(step["shares"].values()) == pytest.approx(1) for step in reason["steps"])


def test_reasons_come_with_the_notes_of_the_plan(aegis: Callable[..., Outcome]) -> None:
    outcome = aegis("plan", "why", *LLAMA, "--total-gpus", "8", "--system", "mi250x", "--tpot", "60")
    assert outcome.code == 0
    assert "note: mi250x: nobody has measured tables" in outcome.err


def test_a_plan_on_little_memory_is_bound_by_it(aegis: Callable[..., Outcome]) -> None:
    asked = ("plan", "why", "--model", "meta-llama/Llama-3.1-70B", "--isl", "4000", "--osl", "1000")
    outcome = aegis(*asked, "--total-gpus", "4", "--system", "h100_sxm", "--tpot", "1000", "--ttft", "100000")
    assert outcome.code == 0
    assert "memory: a larger batch does not fit" in outcome.out
    assert "does not fit: weights" in outcome.out  # a smaller split


def test_two_plans_are_compared(aegis: Callable[..., Outcome], tmp_path: Path) -> None:
    asked = ("plan", "default", *LLAMA, "--total-gpus", "8", "--system", "h100_sxm", "--json")
    for name, tpot in (("a.json", "10"), ("b.json", "20")):
        (tmp_path / name).write_text(aegis(*asked, "--tpot", tpot).out)
    outcome = aegis("plan", "diff", str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    assert outcome.code == 0
    assert "tokens/s/gpu" in outcome.out
    assert "%" in outcome.out
    same = aegis("plan", "diff", str(tmp_path / "a.json"), str(tmp_path / "a.json"))
    assert same.out.count("the same") == 2


@pytest.mark.parametrize(("content", "code"), [(None, 4), ("{", 2), ("[1]", 2), ('{"agg": [1]}', 2)])
def test_what_is_no_plan_is_told(
    aegis: Callable[..., Outcome], tmp_path: Path, content: str | None, code: int
) -> None:
    file = tmp_path / "plan.json"
    if content is not None:
        file.write_text(content)
    outcome = aegis("plan", "diff", str(file), str(file))
    assert outcome.code == code
    assert str(file) in outcome.err


def test_a_folder_without_a_plan_is_told(aegis: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = aegis("plan", "diff", str(tmp_path), str(tmp_path))
    assert outcome.code == 2
    assert "--save-dir" in outcome.err


def test_a_measured_sweep_calibrates_later_plans(aegis: Callable[..., Outcome], tmp_path: Path) -> None:
    batches = [word for batch in ("1", "8", "32", "64") for word in ("--batch", batch)]
    outcome = aegis(*ESTIMATE, *batches)
    assert len(outcome.out.splitlines()) == 5
    planned = aegis(*ESTIMATE, *batches, "--json").out
    (tmp_path / "plan.json").write_text(planned)
    rows = json.loads(planned)
    measured = "\n".join(f"{row['concurrency']},{row['ttft'] * 1.3},{row['tpot'] * 1.2}" for row in rows)
    (tmp_path / "measured.csv").write_text(f"concurrency,ttft,tpot\n{measured}\n")
    factors = tmp_path / "calibration.json"
    done = aegis(
        "plan",
        "calibrate",
        str(tmp_path / "measured.csv"),
        "--plan",
        str(tmp_path / "plan.json"),
        "-o",
        str(factors),
    )
    assert done.code == 0
    again = json.loads(aegis(*ESTIMATE, "--batch", "32", "--calibration", str(factors), "--json").out)
    assert again["tpot"] == pytest.approx(rows[2]["tpot"] * 1.2, rel=0.03)
    assert any("calibrated by measured.csv" in note for note in again["notes"])
    for command in ("default", "why"):
        asked = ("plan", command, *LLAMA, "--total-gpus", "8", "--system", "h100_sxm")
        plain, slower = (
            json.loads(aegis(*asked, "--json", *flags).out) for flags in ((), ("--calibration", str(factors)))
        )
        assert plain != slower


def test_what_is_no_calibration_is_told(aegis: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("{")
    outcome = aegis(*ESTIMATE, "--calibration", str(tmp_path / "c.json"))
    assert outcome.code == 2
    assert "c.json" in outcome.err
