"""Fit predictions to the fit half of the measured deployments, and say how well that does within that half.

Run in the project's environment, after tables, models or formulas have changed: `python scripts/fit_silicon.py`. It takes some
minutes, writes src/aegis/data/planner/silicon/fitted.json.xz and never looks at the test half, which `scripts/bench accuracy` is for.
"""

from __future__ import annotations

import sys
import time

from aegis.planner.silicon.fit import rows
from aegis.planner.silicon.fitted import FITTED, write
from aegis.planner.silicon.whole import fit


def main() -> None:
    """Fit, write, say."""
    start = time.monotonic()
    chosen = rows()
    found = fit(
        chosen, tell=lambda text: print(f"{time.monotonic() - start:4.0f} s  {text}", file=sys.stderr)
    )
    write(found)
    print(f"{len(chosen)} rows of the fit half, {FITTED.stat().st_size / 1024:.0f} KiB")
    for backend, kinds in found.mechanisms.items():
        for kind, mechanism in kinds.items():
            print(backend, kind, mechanism)
    for backend, versions in found.versions.items():
        print(backend, "host's time by version", versions)
    for name, errors in (("TTFT", found.ttft), ("TPOT", found.tpot)):
        print(name, errors.kernels, "not corrected:", errors.unproven)


if __name__ == "__main__":
    main()
