"""What the last words of engines mean: recordings of real deaths, and text that nobody foresaw."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.engines import engine
from aegis.engines.base import COMMON_CAUSES
from aegis.fleet.agent.diagnosis import diagnose
from aegis.fleet.agent.output import TAIL_LINES, TAIL_WIDTH

FIXTURES = Path(__file__).parents[1] / "fixtures" / "vllm"


def causes(name: str = "vllm") -> list[list[Any]]:
    """The causes as the agent reads them: through the fleet file."""
    found: list[list[Any]] = msgspec.json.decode(msgspec.json.encode(engine(name).causes))
    return found


def last_words(name: str) -> list[str]:
    """The lines of a recording that the agent would have kept."""
    lines = (FIXTURES / name).read_text(errors="replace").splitlines()
    return [line.rstrip()[:TAIL_WIDTH] for line in lines[-TAIL_LINES:]]


RECORDED = [
    ("serve_fail_portinuse.log", "port is taken: address already in use", False),
    ("serve_fail_nomodel.log", "model not found: /srv/models/nosuch", True),
    (
        "serve_fail_offlinehub.log",
        "model not found: it is not on this node, and the hub is switched off; set `model_source`",
        True,
    ),
    (
        "serve_fail_maxlen.log",
        "User-specified max_model_len (100000) is greater than the derived max_model_len; lower --max-model-len",
        True,
    ),
    (
        "serve_fail_kvtoosmall.log",
        (
            "out of memory: No available memory for the cache blocks;"
            " lower --max-model-len or raise the tensor parallel size"
        ),
        True,
    ),
    ("serve_fail_badflag.log", "engine arguments: unrecognized arguments: --no-such-flag 3", True),
    ("serve_fail_sleepmode_cpu.log", "Sleep mode is not supported on current platform.", True),
    (
        "serve_engine_death_headdim16.log",
        "Unsupported CPU attention configuration: head_dim=16 isa=2 kv_cache_idx=0",
        True,
    ),
]


@pytest.mark.parametrize(("log", "cause", "permanent"), RECORDED)
def test_recorded_deaths(log: str, cause: str, permanent: bool) -> None:
    assert diagnose(causes(), last_words(log), 1) == (cause, permanent)


def test_every_recorded_failure_is_tested() -> None:
    assert {file.name for file in FIXTURES.glob("serve_fail_*.log")} <= {log for log, _, _ in RECORDED}


def test_words_like_error_in_a_good_start_are_no_cause() -> None:
    lines = last_words("serve_startup_eager.log")
    assert any("failed to" in line and "OSError" in line for line in lines)
    assert diagnose(causes(), lines, 0) == ("", False)


@pytest.mark.parametrize(
    ("line", "cause", "permanent"),
    [
        (
            (
                "ValueError: To serve at least one request with the model's max seq len (32768), (4.0 GiB KV cache is needed,"
                " which is larger than the available KV cache memory (1.5 GiB). Based on the available memory, ..."
            ),
            (
                "out of memory: To serve at least one request with the model's max seq len (32768), (4.0 GiB KV cache is"
                " needed, which is larger than the available KV cache memory (1.5 GiB);"
                " lower --max-model-len or raise the tensor parallel size"
            ),
            True,
        ),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
            "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.",
            False,
        ),
        (
            "torch.cuda.OutOfMemoryError: HIP out of memory. Tried",
            "out of memory: HIP out of memory. Tried",
            False,
        ),
        ("OSError: [Errno 12] Cannot allocate memory", "out of memory: Cannot allocate memory", False),
        (
            "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
            "out of memory",
            False,
        ),
        (
            "huggingface_hub.errors.GatedRepoError: 401 Client Error.",
            "gated model: set HF_TOKEN to a token that was granted access to it",
            True,
        ),
        (
            "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error.",
            "model not found",
            True,
        ),
        (
            "OSError: Can't load the configuration of 'no/such'. If you were trying to",
            "model not found: no/such",
            True,
        ),
        ("OSError: [Errno 28] No space left on device", "disk full: no space left on device", False),
        (
            "aegis: cannot run vllm: No such file or directory",
            "engine not found: vllm: No such file or directory; set `venv:`, `image:`, `modules:` or the platform's `setup:`",
            True,
        ),
        (
            "aegis: cannot start: module no/such cannot be loaded",
            "module no/such cannot be loaded",
            True,
        ),
        (
            'FATAL:   "vllm": executable file not found in $PATH',
            "engine not found: vllm is not in the image",
            True,
        ),
        (
            "FATAL:   could not open image /x y.sif: failed to retrieve path for /x y.sif: lstat /x y.sif: no such file",
            "the image cannot be opened: /x y.sif",
            True,
        ),
        (
            (
                "FATAL:   container creation failed: mount hook function failure: mount /d->/d error: while mounting /d:"
                " mount source /d doesn't exist"
            ),
            "not on this node, so not to be bound into the container: /d",
            True,
        ),
        (
            "FATAL:   container creation failed: unable to set up a user namespace",
            "container creation failed: unable to set up a user namespace",
            False,
        ),
        (
            "RuntimeError: Failed to infer device type, please",
            "no device is visible: Failed to infer device type",
            True,
        ),
        ("ModuleNotFoundError: No module named 'torch'", "engine incomplete: No module named 'torch'", True),
        (
            "api_server.py: error: argument --port: invalid int value: 'x'",
            "engine arguments: argument --port: invalid int value: 'x'",
            True,
        ),
    ],
)
def test_other_known_words(line: str, cause: str, permanent: bool) -> None:
    assert diagnose(causes(), ["before", line, "after"], 1) == (cause, permanent)


def test_what_the_simulated_engine_says() -> None:
    assert diagnose(causes("sim"), ["sim: told to crash"], 3) == ("told to crash", False)


def test_signals_have_names() -> None:
    assert diagnose([], [], -signal.SIGSEGV) == ("killed by SIGSEGV", False)
    assert diagnose([], [], -signal.SIGKILL)[0].endswith("perhaps by the node's out-of-memory killer")
    assert diagnose([], [], -64) == ("killed by SIGRTMAX", False)
    assert diagnose([], [], -1000) == ("killed by 1000", False)
    assert diagnose([], [], 1) == ("", False)
    assert diagnose([], [], None) == ("", False)


@given(st.lists(st.text()), st.integers(-70, 255) | st.none())
@settings(deadline=None)
def test_any_text_has_a_verdict(lines: list[str], code: int | None) -> None:
    diagnose(causes(), lines, code)


ADVERSARIES = {
    "words": "a" * 500,
    "blanks": " " * 500,
    "brackets": "(" * 500,
    "near memory": "KV cache is need " * 30,
    "near out of memory": "OutOfMemoryErro" * 30 + "CUDA out of memor" * 10,
    "near id": "Repo id must " * 40,
    "near quotes": "Can't load the configuration of '" * 15,
    "near length": "User-specified max_model_len " * 15,
    "near request": "To serve at least one request " * 15,
    "near gate": "Access to model " * 30,
    "near error": "error: argument" * 30,
    "near group": "Repo id must be in the form: '" * 15,
}


@pytest.mark.parametrize("text", ADVERSARIES.values(), ids=ADVERSARIES.keys())
def test_a_flood_of_long_lines_is_judged_in_time(text: str) -> None:
    lines = [text] * 10_000  # 50 times what the agent keeps
    started = time.process_time()
    diagnose(causes(), lines, 1)
    assert time.process_time() - started < 2.0  # 0.7 s on an idle machine; what backtracks takes minutes


def test_one_endless_line_is_judged_in_time() -> None:
    started = time.process_time()
    for text in ADVERSARIES.values():
        diagnose(causes(), [text * 200], 1)
    assert time.process_time() - started < 3.0


@pytest.mark.parametrize("cause", COMMON_CAUSES, ids=lambda cause: str(cause.meaning)[:30])
def test_a_placeholder_has_a_group_and_a_group_a_placeholder(cause: Any) -> None:
    assert bool(re.compile(cause.pattern).groups) == ("{}" in cause.meaning)
