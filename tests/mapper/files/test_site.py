from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from aegis.mapper.files.site import HERE, Site, short

WORKER = ["python3", "-I", "worker.py", "--secret-file", "/out/a b/secret"]
HOSTS = Path("/out/hosts")


def test_here_one_worker_serves_all() -> None:
    site = Site()
    assert site.place("n1") == site.place("n2") == site.name("n1") == HERE
    assert site.command(["n1"], WORKER, HOSTS) == [*WORKER, "--node", "n1"]


def test_over_ssh_each_node_has_one_and_words_are_quoted_for_its_shell() -> None:
    site = Site(launcher="ssh", words=("-p", "2222"), nodes=True)
    assert site.groups(["a", "b"]) == [["a"], ["b"]]
    command = site.command(["a"], WORKER, HOSTS)
    assert (command[0], command[-3:-1]) == ("ssh", ["--", "a"])
    assert command[-5:-3] == ["-p", "2222"]
    assert shlex.split(command[-1]) == [*WORKER, "--node", "a"]


@pytest.mark.parametrize("launcher", ["srun", "mpiexec"])
def test_a_launcher_starts_all_at_once_and_they_find_their_own_names(launcher: str) -> None:
    site = Site(launcher=launcher, words=("--own",), nodes=True)  # type: ignore[arg-type]
    assert site.groups(["a", "b"]) == [["a", "b"]]
    command = site.command(["a", "b"], WORKER, HOSTS)
    assert command[0] == launcher
    assert any(str(HOSTS) in word for word in command)
    assert command[-len(WORKER) - 1 :] == ["--own", *WORKER]


def test_an_instance_is_found_by_the_name_or_the_address_of_its_node() -> None:
    site = Site(nodes=True, names={"x1.site": "x1.site", "x1-hsn0": "x1.site"})
    assert site.place("x1") == site.place("x1.site") == site.place("x1-hsn0") == "x1"
    assert (site.name("x1-hsn0"), site.name("x2")) == ("x1.site", "x2")
    assert [short(name) for name in ("127.0.0.2", "::1", "n1.site.org")] == ["127.0.0.2", "::1", "n1"]
