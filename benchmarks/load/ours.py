"""Our load generator as a tool that is measured from outside.

    python ours.py PORT REQUESTS TOKENS CONCURRENCY RATE INPUT_TOKENS

A rate (1/s) of 0 is a closed loop.
"""

from __future__ import annotations

import sys

from aegis.api.targets import Target
from aegis.bench.processes import run_load
from aegis.bench.prompts import Lengths, Tokens, random_prompts
from aegis.bench.work import Work, arrivals


def main() -> None:
    port, count, tokens, concurrency, rate, length = map(int, sys.argv[1:])
    work = Work(
        target=Target("127.0.0.1", port, ("m",)),
        model="m",
        prompts=random_prompts(count, Lengths(length, tokens), Tokens()),
        concurrency=0 if rate else concurrency,
        arrivals=arrivals(count, rate) if rate else (),
    )
    errors = run_load([work]).outcomes[0].records.errors
    if any(errors):
        raise SystemExit(next(filter(None, errors)))


if __name__ == "__main__":
    main()
