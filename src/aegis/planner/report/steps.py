"""One configuration on a terminal: what it delivers, what it holds, and its steps operation by operation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.planner.report.words import INTERVAL, between, support

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aegis.planner.operations import Kind
    from aegis.planner.single import Estimate, Step

BAR = 60  # characters
_HIDDEN = 1.005  # times what an operation takes: what is shown as more than 100%
_LETTERS: dict[Kind, str] = {
    "gemm": "G",
    "attention": "A",
    "experts": "E",
    "link": "L",
    "memory": "m",
    "host": "h",
}
_MEANING = {
    "G": "GEMM",
    "A": "attention",
    "E": "experts",
    "L": "links",
    "m": "norms, activations, embedding",
    "h": "host: scheduling, sampling, launching",
}


def report(estimate: Estimate) -> str:
    """Return the text of `aegis plan estimate`."""
    return "\n".join(
        [
            *_delivered(estimate),
            *_simulated(estimate),
            "",
            *_held(estimate),
            *(line for step in estimate.steps for line in _step(step)),
            *_legend(estimate),
        ]
    )


def summary(estimates: Sequence[Estimate]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the head and a line for each of several batch sizes."""
    head = ("BATCH", "CONCURRENCY", "TTFT", "TPOT", "REQUESTS/S", "TOKENS/S/GPU", "TOKENS/S/USER", "MEMORY")
    rows: list[tuple[str, ...]] = [
        (
            str(each.batch),
            str(each.concurrency),
            f"{each.ttft:.2f} ms",
            f"{each.tpot:.3f} ms",
            f"{each.requests_per_s:.3f}",
            f"{each.tokens_per_s_gpu:.2f}",
            f"{each.tokens_per_s_user:.2f}",
            f"{sum(each.memory.values()):.1f} GiB{'' if each.fits else ', does not fit'}",
            between(each.tokens_per_s_gpu, each.spread),
            str(each.measured) if each.spread else "",
        )
        for each in estimates
    ]
    columns: tuple[str, ...] = head
    if any(each.spread for each in estimates):
        columns = (*head, INTERVAL, "MEASURED")
    rows = [row[: len(columns)] for row in rows]
    if all(each.simulated for each in estimates):
        columns = (*columns, "SIMULATED TTFT", "TPOT")
        seen = [each.simulated for each in estimates if each.simulated]
        rows = [(*row, f"{of.ttft:.2f} ms", f"{of.tpot:.3f} ms") for row, of in zip(rows, seen, strict=True)]
    return columns, rows


def _delivered(estimate: Estimate) -> Iterator[str]:
    band = f"  (estimated: +-{estimate.uncertainty:.0%})" if estimate.uncertainty else ""
    gpus = f"{estimate.split.gpus} GPU{'s' * (estimate.split.gpus > 1)}"
    yield f"{estimate.label}: {gpus}, batch {estimate.batch}, {estimate.context_tokens} context tokens{band}"
    formats = estimate.quantization
    experts = (
        f", experts {formats.moe}" if any(part.kind == "experts" for part in estimate.steps[0].parts) else ""
    )
    yield f"  weights {formats.gemm}{experts}, KV cache {formats.kv_cache}, prefill attention {formats.fmha}"
    rows = (
        ("TTFT", f"{estimate.ttft:.2f} ms"),
        ("TPOT", f"{estimate.tpot:.3f} ms"),
        ("request latency", f"{estimate.request_latency:.2f} ms"),
        ("concurrency", f"{estimate.concurrency}"),
        ("requests/s", f"{estimate.requests_per_s:.3f}"),
        ("tokens/s", f"{estimate.tokens_per_s:.2f}"),
        ("tokens/s/gpu", f"{estimate.tokens_per_s_gpu:.2f}"),
        ("tokens/s/user", f"{estimate.tokens_per_s_user:.2f}"),
    )
    intervals = {
        "TTFT": between(estimate.ttft, estimate.ttft_spread),
        "TPOT": between(estimate.tpot, estimate.tpot_spread),
        "tokens/s/gpu": between(estimate.tokens_per_s_gpu, estimate.spread),
    }
    for name, value in rows:
        yield f"  {name:<18}{value:>14}   {intervals.get(name, '')}".rstrip()
    if estimate.spread:
        yield f"  {INTERVAL} of the time between these, {support(estimate.measured, estimate.spread)}"


def _simulated(estimate: Estimate) -> Iterator[str]:
    seen = estimate.simulated
    if seen is None:
        return
    lengths = f"answers up to {seen.uneven:.0%} shorter or longer" if seen.uneven else "answers of one length"
    yield f"simulated step by step, {lengths}, ten requests of each user:"
    yield f"  {'TTFT':<18}{f'{seen.ttft:.2f} ms':>14}"
    yield f"  {'TPOT':<18}{f'{seen.tpot:.3f} ms':>14}"
    yield f"  {'tokens/s/gpu':<18}{f'{seen.tokens_per_s_gpu:.2f}':>14}"


def _held(estimate: Estimate) -> Iterator[str]:
    total = sum(estimate.memory.values())
    verdict = "fits" if estimate.fits else "DOES NOT FIT"
    yield f"memory of one GPU: {total:.2f} of {estimate.capacity:.2f} GiB, {verdict}"
    for name, size in estimate.memory.items():
        yield f"  {name.replace('_', ' '):<18}{size:>10.2f} GiB"


def _step(step: Step) -> Iterator[str]:
    yield ""
    yield f"{step.name} step: {step.ms:.3f} ms"
    if not step.ms:
        return
    yield f"  [{bar(step)}]"
    width = max(len(part.name) for part in step.parts)
    yield f"  {'operation':<{width}}{'ms':>11}{'share':>8}{'of limit':>10}  bound by"
    for part in sorted(step.parts, key=lambda each: -each.ms):
        of_limit = f"{part.ideal / part.ms:.0%}" if part.ideal else "?"
        yield f"  {part.name:<{width}}{part.ms:>11.4f}{part.ms / step.ms:>8.1%}{of_limit:>10}  {part.bound}"


def _legend(estimate: Estimate) -> Sequence[str]:
    used = {_LETTERS[part.kind] for step in estimate.steps for part in step.parts}
    said = ", ".join(f"{letter} {_MEANING[letter]}" for letter in _MEANING if letter in used)
    limit = "of limit: what the hardware's compute, memory or link alone would take"
    if any(part.ideal > part.ms * _HIDDEN for step in estimate.steps for part in step.parts):
        limit += "; above 100% where it is hidden behind other operations"
    return ("", f"bars: {said}", limit)


def bar(step: Step, width: int = BAR) -> str:
    """Return a step as a stacked bar of letters, one for each kind of operation; largest remainders fill it up."""
    shares = dict.fromkeys(_MEANING, 0.0)
    for part in step.parts:
        shares[_LETTERS[part.kind]] += part.ms / step.ms * width
    cells = {letter: int(share) for letter, share in shares.items()}
    by_remainder = sorted(shares, key=lambda letter: cells[letter] - shares[letter])
    for letter in by_remainder[: width - sum(cells.values())]:
        cells[letter] += 1
    return "".join(letter * count for letter, count in cells.items())
