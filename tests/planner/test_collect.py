"""Measuring a machine: what is measured, in what time, and what comes of it. PyTorch itself only in the last test."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from aegis.cli import cli
from aegis.errors import ConfigError, SiteError
from aegis.planner.collect import device as devices
from aegis.planner.collect.device import Device, Traffic
from aegis.planner.collect.journal import Head, Journal, to_slices
from aegis.planner.collect.points import QUICK, QUICK_COMMON, Shapes, points, shapes_of
from aegis.planner.collect.run import Asked, collect
from aegis.planner.collect.timing import median_ms
from aegis.planner.models.resolve import find_model
from aegis.planner.operations import Gemm, GenerationAttention, query
from aegis.planner.perf.measured import Measured
from aegis.planner.systems import load_system
from aegis.planner.tables.store import open_tables

if TYPE_CHECKING:
    from aegis.planner.collect.points import Point

SOURCE = Path(__file__).parents[2] / "src"


class Clock:
    """Seconds that pass when something is measured."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Fake(Device):
    """A device of 100 TFLOPS and 1 TB/s, each point of which takes a second to measure."""

    def __init__(self, clock: Clock) -> None:
        self.torch = SimpleNamespace(__version__="9.9.0+fake")
        self.kind = "cpu"
        self.clock = clock
        self.measured: list[Point] = []
        self.refuses = {"context_attention"}

    title = "Fake GPU"
    capacity = 16 << 30

    def formats(self) -> list[str]:
        return ["bfloat16"]

    def traffic(self) -> Traffic:
        return Traffic(1e12, 0.9, 2e-6)

    def measure(self, point: Point) -> float | None:
        self.clock.now += 1
        self.measured.append(point)
        if point.operation in self.refuses:
            return None
        return 0.01 + 1000 * (point.flops / 1e14 + point.bytes / 1e12)


def asked(folder: Path, minutes: float = 60, *, fresh: bool = False) -> Asked:
    return Asked("my_gpu", "vllm", folder, minutes, quick=True, ranks=1, fresh=fresh)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("AEGIS_TABLES", str(tmp_path))
    return tmp_path


def test_a_run_gives_a_table_and_a_system_that_plans_can_name(own: Path) -> None:
    clock = Clock()
    done = collect(asked(own), Fake(clock), clock=clock)
    assert done.table == own / "current" / "my_gpu-vllm-9.9.0.table"
    assert (done.left, done.cannot) == (0, 18)
    system = load_system("my_gpu")
    assert (system.title, system.memory_bandwidth, system.memory_latency) == ("Fake GPU", 1e12, 2e-6)
    assert 5e13 < system.flops["bfloat16"] <= 1e14  # the best product that was measured
    tables = open_tables("my_gpu", "vllm")
    performance = Measured(system, tables)
    at = query(tokens=64, batch=64, length=1024)
    time = performance.latency(Gemm(name="gemm", n=4096, k=4096, quant="bfloat16"), at)
    assert time.item() == pytest.approx(
        0.01 + 1000 * (2 * 64 * 4096**2 / 1e14 + 2 * (4096**2 + 2 * 64 * 4096) / 1e12), rel=2e-4
    )
    decode = GenerationAttention(
        name="generation_attention", heads=32, kv_heads=8, head_size=128, kv_cache="bfloat16"
    )
    assert performance.latency(decode, at).item() > 0.1


def test_a_run_that_ends_early_goes_on_where_it_ended(own: Path) -> None:
    clock = Clock()
    first, second = Fake(clock), Fake(clock)
    done = collect(asked(own, minutes=1), first, clock=clock)
    assert 40 < len(first.measured) < 60
    assert done.left > 40
    assert done.rows == len(first.measured)
    assert open_tables("my_gpu", "vllm").info.operations["gemm"] == done.rows
    done = collect(asked(own), second, clock=clock)
    assert done.left == 0
    assert not {each[:3] for each in first.measured} & {each[:3] for each in second.measured}
    third = Fake(clock)
    collect(asked(own, fresh=True), third, clock=clock)
    assert len(third.measured) == len(first.measured) + len(second.measured)


def test_another_pytorch_starts_anew(own: Path) -> None:
    clock = Clock()
    old = Fake(clock)
    collect(asked(own), old, clock=clock)
    new = Fake(clock)
    new.torch.__version__ = "9.9.1"
    collect(asked(own), new, clock=clock)
    assert len(new.measured) == len(old.measured)


def test_what_does_not_fit_the_memory_is_not_tried(own: Path) -> None:
    clock = Clock()
    small = Fake(clock)
    small.capacity = 64 << 20
    done = collect(asked(own), small, clock=clock)
    assert done.left > 0
    assert max(each.bytes for each in small.measured) <= 16 << 20


def test_a_journal_survives_a_line_that_is_cut_off(tmp_path: Path) -> None:
    file, head = tmp_path / "points.jsonl", Head(device="d", torch="1")
    journal = Journal(file, head)
    journal.add("gemm", ("bfloat16",), (1, 2, 3), 0.5)
    journal.add("gemm", ("bfloat16",), (1, 2, 4), None)
    with file.open("ab") as stream:
        stream.write(b'["gemm",["bfloat1')
    again = Journal(file, head)
    assert ("gemm", ("bfloat16",), (1, 2, 3)) in again
    assert ("gemm", ("bfloat16",), (1, 2, 4)) in again
    assert len(again.rows) == 2
    assert again.slices()["gemm"]["bfloat16",].latency.tolist() == [0.5]
    assert len(file.read_bytes().splitlines()) == 3  # the broken line is gone


def test_rows_become_sorted_slices() -> None:
    rows = [("gemm", ("bfloat16",), axes, float(sum(axes))) for axes in product((8, 4), (2, 1), (16, 1))]
    found = to_slices(rows)["gemm"]["bfloat16",]
    places = list(zip(*(axis.tolist() for axis in found.axes), strict=True))
    assert places == sorted(places)
    assert found.latency.tolist() == [float(sum(place)) for place in places]


def test_shapes_of_a_model_are_those_of_its_graph() -> None:
    found = shapes_of([find_model("LLAMA3.1_8B")], load_system("a100_sxm"), "vllm")
    assert {(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)} <= found.products
    assert {(32, 8, 128), (16, 4, 128), (8, 2, 128), (4, 1, 128)} <= found.attention


def test_points_have_the_keys_of_tables_and_a_guess_of_their_size() -> None:
    shapes = Shapes(frozenset({(64, 32)}), frozenset({(8, 8, 128), (8, 2, 128)}))
    found = list(points(shapes, QUICK, ["bfloat16"]))
    gemm = next(each for each in found if each.operation == "gemm" and each.axes == (64, 32, 8))
    assert gemm[:2] == ("gemm", ("bfloat16",))
    assert gemm.flops == 2 * 64 * 32 * 8
    assert {each.key[-3] for each in found if each.operation == "generation_attention"} == {0, 2}
    assert len({each[:3] for each in found}) == len(found)


def test_every_size_of_a_product_is_within_an_octave_of_a_measured_one() -> None:
    """Products are looked up within two octaves, of both sizes together."""
    sizes = sorted({n for n, _ in QUICK_COMMON.products})
    assert all(after / before <= 4 for before, after in pairwise(sizes))


def test_short_calls_are_repeated_and_long_ones_are_not() -> None:
    def timed(seconds: float) -> tuple[float, int]:
        now, calls = 0.0, 0

        def call() -> None:
            nonlocal now, calls
            now, calls = now + seconds, calls + 1

        return median_ms(call, lambda: None, lambda: now), calls

    short, long = timed(1e-5), timed(2.0)
    assert short[0] == pytest.approx(0.01)
    assert short[1] > 500
    assert long == (2000.0, 3)


def test_a_python_without_pytorch_is_told_so() -> None:
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        with pytest.raises(SiteError, match="needs PyTorch") as error:
            devices.find_device()
    finally:
        del sys.modules["torch"]
    assert "Python of your engine" in (error.value.hint or "")


def test_a_device_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    there, not_there = (
        SimpleNamespace(is_available=lambda answer=answer: answer) for answer in (True, False)
    )
    torch = SimpleNamespace(cuda=there, xpu=not_there, __version__="9", device=lambda kind: kind)
    monkeypatch.setattr(devices, "import_torch", lambda: torch)
    assert devices.find_device().kind == "cuda"
    with pytest.raises(ConfigError, match="no xpu device") as error:
        devices.find_device("xpu")
    assert error.value.hint == "there is cuda, cpu"


@pytest.mark.parametrize(("name", "said"), [("h100_sxm", "built in"), ("My GPU", "lower-case")])
def test_a_name_that_would_hide_or_break_something_is_refused(name: str, said: str) -> None:
    result = CliRunner().invoke(cli, ["plan", "collect", "--name", name])
    assert result.exit_code != 0
    assert said in str(result.exception)


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_a_quick_table_of_this_machine_is_enough_to_plan_a_tiny_model(
    vllm_venv: Path, tiny_model: Path, own: Path
) -> None:
    command = [str(vllm_venv / "bin" / "python"), "-m", "aegis", "plan", "collect", "--name", "here"]
    flags = ["--device", "cpu", "--quick", "--budget", "0.5", "--ranks", "2", "--model", str(tiny_model)]
    environment = {
        "PYTHONPATH": str(SOURCE),
        "AEGIS_TABLES": str(own),
        "PATH": "/usr/bin:/bin",
        "HOME": str(own),
    }
    done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rows in" in done.stdout
    system, tables = load_system("here"), open_tables("here", "vllm")
    assert system.flops["bfloat16"] > 1e9
    assert {"gemm", "context_attention", "generation_attention", "custom_allreduce", "nccl"} <= set(
        tables.info.operations
    )
    products = tables.load("gemm", ("bfloat16",))
    assert products is not None
    assert np.isfinite(products.latency).all()
    argv = ["plan", "default", "--model", str(tiny_model), "--system", "here", "--backend", "vllm"]
    load = [
        "--total-gpus",
        "1",
        "--isl",
        "500",
        "--osl",
        "100",
        "--ttft",
        "60000",
        "--tpot",
        "10000",
        "--json",
    ]
    result = CliRunner().invoke(cli, [*argv, *load])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["agg"][0]["tokens/s/gpu"] > 0
