"""Fit the efficiency curves of systems without tables to all tables there are, and say what they get wrong.

Run in the project's environment, after tables have changed: `python scripts/fit_efficiency.py`. It takes half a minute,
writes src/aegis/data/planner/efficiency.json and prints the errors on systems that were left out of the fit.
The bands that it prints go into `uncertainty` of the systems' descriptions; a test compares them.
"""

from __future__ import annotations

import sys
import time

import msgspec

from aegis.files import write_atomically
from aegis.planner.fit.leave_one_out import fit, leave_one_out, places
from aegis.planner.fit.samples import samples
from aegis.planner.perf.efficiency import FILE, bands, errors


def main() -> None:
    """Fit, hold out, write, print."""
    start = time.monotonic()
    where = places()
    held = leave_one_out(
        where, lambda name: print(f"{time.monotonic() - start:4.0f} s  without {name}", file=sys.stderr)
    )
    fitted = fit(sample for place in where for sample in samples(place.system, place.tables))
    curves = msgspec.structs.replace(fitted, held_out=tuple(held))
    write_atomically(FILE, msgspec.json.encode(curves) + b"\n")
    print(
        f"{len(curves.curves)} curves, {FILE.stat().st_size / 1024:.0f} KiB, {time.monotonic() - start:.0f} s"
    )
    for known in (True, False):
        print("another of its family was in the fit" if known else "none of its family was in the fit")
        for row in errors(curves, family_known=known):
            print(
                f"  {row.what:24} {row.systems} systems: median {row.median:4.0%}, 90 % {row.bound:4.0%}, "
                f"5 to 95 % {row.low:+4.0%} to {row.high:+4.0%}"
            )
    for name, band in bands(curves).items():
        print(f"{name:10} {band:.2f}")


if __name__ == "__main__":
    main()
