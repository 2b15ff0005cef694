from __future__ import annotations

import msgspec
import pytest

from aegis.errors import ConfigError, SiteError
from aegis.staging.choose import Facts, choose

PBS = Facts(one_machine=False, launcher="mpiexec", program=False, compiler=True, starter=True)


def but(**changes: object) -> Facts:
    return msgspec.structs.replace(PBS, **changes)


@pytest.mark.parametrize(
    ("facts", "stager"),
    [
        (PBS, "mpi"),
        (but(launcher="srun"), "mpi"),
        (but(compiler=False), "tcp"),
        (but(compiler=False, program=True), "mpi"),
        (but(starter=False), "tcp"),
        (but(launcher="ssh"), "tcp"),
        (but(one_machine=True, launcher="local"), "copy"),
    ],
)
def test_the_fastest_that_works_is_taken(facts: Facts, stager: str) -> None:
    choice = choose(None, facts)
    assert choice.stager == stager
    assert choice.why


def test_a_wish_is_followed_or_refused() -> None:
    assert choose("tcp", PBS).stager == "tcp"
    assert choose("none", PBS).stager == "none"
    with pytest.raises(ConfigError, match="one machine"):
        choose("copy", PBS)
    with pytest.raises(SiteError, match="mpicc"):
        choose("mpi", but(compiler=False))
    with pytest.raises(SiteError, match="mpiexec"):
        choose("mpi", but(starter=False))
    with pytest.raises(SiteError, match="without MPI"):
        choose("mpi", but(launcher="local", one_machine=True))
