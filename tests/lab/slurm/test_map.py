"""`aegis map` in a batch job of its user's own: stopped before the end, put back into the queue, finished there."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from tests.lab.conftest import wait_until

if TYPE_CHECKING:
    from .lab import SlurmLab, User

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

ROWS = 400
JOB = f"""#!/bin/bash
#SBATCH --requeue --time=00:10:00 --mem=1G --partition=all --output=map.log --open-mode=append
aegis() {{ {sys.executable} -P -m aegis "$@"; }}
rm -f sim.log
{sys.executable} -P -m aegis sim m --port 0 --ttft-ms 50 --max-num-seqs 4 >sim.log 2>&1 &
trap "kill $!" EXIT
until grep -qs 'pid ' sim.log; do sleep 0.1; done
grep -o '127.0.0.1:[0-9]*' sim.log | head -n 1 >aegis_endpoints.txt
aegis map rows.jsonl --prompt '{{text}}' --kind embeddings --output out.jsonl --resubmit "$@"
echo "exit $?"
"""


def test_what_a_job_does_not_finish_it_goes_on_with_after_it_was_put_back(
    alice: User, slurm: SlurmLab
) -> None:
    rows = "".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(ROWS))
    alice.transport.write(str(alice.work / "rows.jsonl"), rows)
    alice.transport.write(str(alice.work / "job.sh"), JOB)
    submitted = alice.run("sbatch", "--parsable", "job.sh", "--walltime", "00:00:04")
    handle = f"slurm://{submitted.out.strip()}"

    waiting = alice.wait_for(handle, "PENDING", seconds=60)
    while not waiting.restarts:
        waiting = alice.wait_for(handle, "PENDING", seconds=60)
    log = (alice.work / "map.log").read_text()
    assert "left" in log
    assert f"{handle} is put back into the queue" in log
    assert not (alice.work / "out.jsonl").exists()

    slurm.begin(submitted.out.strip(), "now+3")  # its node forgets the first run
    wait_until((alice.work / "out.jsonl").exists, "the continuation is done", 60)
    lines = [json.loads(line) for line in (alice.work / "out.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [str(number + 1) for number in range(ROWS)]
    wait_until(lambda: "exit 0" in (alice.work / "map.log").read_text(), "it says so")
    assert "rows are done already" in (alice.work / "map.log").read_text()
