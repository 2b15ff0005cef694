"""`vllm bench serve`: its arguments for one endpoint, and what it leaves behind. Pure."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, Final

from aegis.bench.report import Result, figures_of
from aegis.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.api.targets import Target

PROGRAM: Final = ("vllm", "bench", "serve")
METRICS: Final = (
    *("--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "90,99"),
    "--disable-tqdm",
)
OURS: Final = frozenset(
    (
        "--host",
        "--port",
        "--base-url",
        "--save-result",
        "--append-result",
        "--result-dir",
        "--result-filename",
    )
)
NAMES_MODEL: Final = frozenset(("--model", "--served-model-name"))
NAMES_TOKENIZER: Final = frozenset(("--tokenizer", "--skip-tokenizer-init"))
TELLING: Final = re.compile(r"(?:^|[\s.])\w*(?:Error|Exception|Exit)\b[^:]*:|\berror: |^FATAL|^aegis: ")
LONGEST: Final = 300  # letters of a reason
TAIL: Final = 1 << 16  # bytes of a standard error that are looked at


def flags_of(passed: Sequence[str]) -> frozenset[str]:
    """Return the flags among arguments, with dashes where vLLM takes both."""
    return frozenset(word.partition("=")[0].replace("_", "-") for word in passed if word.startswith("--"))


def check_passed(passed: Sequence[str]) -> None:
    """Refuse arguments that would measure another endpoint, or hide the result.

    Raises:
        ConfigError: there is one.
    """
    if taken := sorted(flags_of(passed) & OURS):
        raise ConfigError(
            f"{', '.join(taken)} after --: aegis gives it to vllm for each endpoint",
            hint="name servers with --endpoints-file, a registry or a job; results go to --output",
        )


def model_words(model: str, tokenizer: str | None, passed: Sequence[str]) -> list[str]:
    """Return the arguments that name model and tokenizer; what was passed on wins."""
    flags = flags_of(passed)
    words = [] if flags & NAMES_MODEL else ["--model", model]
    if tokenizer and not flags & (NAMES_TOKENIZER | NAMES_MODEL):
        words += ["--tokenizer", tokenizer]
    return words


def endpoint_words(target: Target, folder: str, file: str) -> list[str]:
    """Return the arguments of one endpoint; they come last, so that none before them counts instead."""
    return [
        *("--host", target.host, "--port", str(target.port)),
        *("--save-result", "--result-dir", folder, "--result-filename", file),
    ]


def result_of(target: Target, model: str, *, said: bytes | None, error: str) -> Result:
    """Return the result of one endpoint.

    Args:
        target: the endpoint.
        model: that was asked.
        said: the JSON that vLLM wrote, where there is one.
        error: why it failed, where it did.
    """
    details: dict[str, Any] = {}
    if not error:
        details = read_result(said or b"")
        error = problem_of(details)
    return Result(
        endpoint=target.address,
        model=model,
        node=target.node,
        instance=target.instance,
        figures=figures_of(details),
        error=error,
        details=details,
    )


def read_result(data: bytes) -> dict[str, Any]:
    """Return what vLLM wrote, with null for what is no number; nothing where it is no result."""
    try:
        found = _finite(json.loads(data))
    except (ValueError, RecursionError):
        return {}
    whole = isinstance(found, dict) and isinstance(found.get("completed"), int)
    if whole and "failed" not in found and isinstance(found.get("num_prompts"), int):
        found["failed"] = found["num_prompts"] - found["completed"]  # older versions
    return found if whole else {}


def problem_of(details: dict[str, Any]) -> str:
    """Return why there is something wrong with a result; vLLM ends with 0 when every request failed."""
    if not details:
        return "vllm bench serve wrote no result"
    failed, asked = details.get("failed") or 0, details["completed"] + (details.get("failed") or 0)
    if not failed and asked:
        return ""
    first = next((each for each in details.get("errors") or () if isinstance(each, str) and each), "")
    reason = f": {reason_of(first.encode())}" if first else ""
    return f"{failed} of {asked} requests failed{reason}" if asked else "no request was sent"


def reason_of(errors: bytes) -> str:
    """Return the line of a standard error that says most: the last that names an error, else the last."""
    text = errors[-TAIL:].decode("utf-8", "replace")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    telling = [line for line in lines if TELLING.search(line)]
    return shortened((telling or lines or [""])[-1])


def shortened(text: str) -> str:
    """Return a text in one line of bearable length."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value
