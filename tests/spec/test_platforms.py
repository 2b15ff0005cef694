"""Profiles of one's own: adding, overriding, extending; and which one this machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegis.errors import DeploymentError
from aegis.spec.platforms import BUILT_IN, Site, load_platform, profile_files


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, **profiles: str) -> None:
    for name, text in profiles.items():
        (folder / f"{name.replace('_', '-')}.yaml").write_text(text)


def site(own: Path, hostname: str = "laptop", *commands: str) -> Site:
    return Site((BUILT_IN, own), hostname, lambda name: name in commands)


def problems(own: Path, name: str, where: str = "--platform") -> list[str]:
    with pytest.raises(DeploymentError) as error:
        load_platform(name, site(own), where=where)
    return [str(problem).replace(f"{own}/", "") for problem in error.value.problems]


def test_a_profile_is_added(own: Path) -> None:
    write(own, mine="scheduler: slurm\nlauncher: srun\nnode: {devices: 2}\n")
    mine = load_platform("mine", site(own))
    assert (mine.name, mine.scheduler, mine.node.devices) == ("mine", "slurm", 2)
    assert "mine" in profile_files(site(own))


def test_a_profile_is_replaced(own: Path) -> None:
    write(own, aurora="scheduler: slurm\n")
    aurora = load_platform("aurora", site(own))
    assert (aurora.scheduler, aurora.node.devices, aurora.queues) == ("slurm", None, ())


def test_a_profile_extends_another(own: Path) -> None:
    write(
        own, mine="extends: aurora\nnode: {devices: 6}\nenv: {NEW: x}\nqueues: [{name: q}]\nhostnames: [h]\n"
    )
    mine, aurora = load_platform("mine", site(own)), load_platform("aurora", site(own))
    assert mine.name == "mine"
    assert mine.hostnames == ("h",)  # lists are replaced
    assert [queue.name for queue in mine.queues] == ["q"]
    assert mine.node.devices == 6  # mappings merge
    assert mine.node.mask_variable == aurora.node.mask_variable
    assert mine.env == {**aurora.env, "NEW": "x"}
    assert mine.defaults == aurora.defaults


def test_a_profile_extends_the_built_in_one_of_its_name(own: Path) -> None:
    write(own, aurora="extends: aurora\ndefaults: {queue: debug}\n")
    aurora = load_platform("aurora", site(own))
    assert aurora.node.devices == 12
    assert aurora.defaults == {"walltime": "01:00:00", "filesystems": "flare:home", "queue": "debug"}


def test_a_chain_is_followed(own: Path) -> None:
    write(own, a="extends: b\ndescription: A\n", b="extends: polaris\nnode: {devices: 2}\n")
    a = load_platform("a", site(own))
    assert (a.description, a.node.devices, a.scheduler) == ("A", 2, "pbs")


@pytest.mark.parametrize(
    ("profiles", "expected"),
    [
        (
            {"a": "extends: b\n", "b": "scheduler: pbs\nextends: a\n"},
            ["b.yaml:2: `extends` goes in a circle"],
        ),
        ({"a": "extends: a\n"}, ["a.yaml:1: `extends` goes in a circle"]),
        (
            {"a": "extends: polari\n"},
            ["a.yaml:1: `extends` names an unknown platform `polari` (did you mean `polaris`?)"],
        ),
        ({"a": "name: b\n"}, ["a.yaml:1: the profile is found as `a`, but `name` is `b` (leave `name` out)"]),
        (
            {
                "a": "schedulr: pbs\nlauncher: mpi\nnode:\n  devices: 0\n  divices: 1\nqueues:\n  - max_nodes: x\n  - {}\n"
            },
            [
                "a.yaml:1: unknown key `schedulr` (did you mean `scheduler`?)",
                "a.yaml:2: `launcher` cannot be `mpi` (did you mean `mpiexec`?)",
                "a.yaml:4: `devices` should be a whole number >= 1, not `0`",
                "a.yaml:5: unknown key `divices` (did you mean `devices`?)",
                "a.yaml:7: `max_nodes` should be a whole number, not `x`",
                "a.yaml:8: this queue has no `name`",
            ],
        ),
        ({"a": "queues: {name: q}\n"}, ["a.yaml:1: `queues` should be a list"]),
        ({"a": "node: 12\n"}, ["a.yaml:1: expected a mapping of keys to values, not a number"]),
        ({"a": ""}, ["a.yaml:1: the file is empty"]),
        (
            {"a": "defaults:\n  wall_time: 01:00:00\nrequired: [acount]\n"},
            [
                "a.yaml:2: `defaults`: unknown key `wall_time` (did you mean `walltime`?)",
                "a.yaml:3: `required`: unknown key `acount` (did you mean `account`?)",
            ],
        ),
    ],
)
def test_problems_of_a_profile_have_their_line(
    own: Path, profiles: dict[str, str], expected: list[str]
) -> None:
    write(own, **profiles)
    assert problems(own, "a") == expected


def test_an_unknown_name_is_told_where_it_was_given(own: Path) -> None:
    assert problems(own, "auora", "f.yaml:3") == [
        "f.yaml:3: unknown platform `auora` (did you mean `aurora`?)"
    ]
    (problem,) = problems(own, "zzz")
    assert problem.startswith("--platform: unknown platform `zzz` (one of aurora, frontier, generic-pbs,")


@pytest.mark.parametrize("name", ["nowhere.yaml", "./nowhere", "~nobody-here/x.yaml"])
def test_a_missing_file_is_told(own: Path, name: str) -> None:
    (problem,) = problems(own, name)
    assert problem.startswith("--platform: there is no file")


def test_a_file_is_named_directly(own: Path) -> None:
    write(own, mine="extends: aurora\nnode: {devices: 3}\n")
    elsewhere = Site((BUILT_IN,), "laptop", lambda _: False)
    assert load_platform(str(own / "mine.yaml"), elsewhere).node.devices == 3


@pytest.mark.parametrize(
    ("hostname", "commands", "scheduler", "name"),
    [
        ("laptop", (), None, "local"),
        ("laptop", ("sbatch",), None, "generic-slurm"),
        ("laptop", ("qsub",), None, "generic-pbs"),
        ("laptop", ("sbatch", "qsub"), "pbs", "generic-pbs"),
        ("laptop", (), "slurm", "generic-slurm"),
        ("aurora-uan-0009", ("qsub",), None, "aurora"),
        ("aurora-uan-0009", ("qsub",), "local", "local"),
        ("login05.frontier.olcf.ornl.gov", ("sbatch",), None, "frontier"),
    ],
)
def test_the_machine_is_recognised(
    own: Path, hostname: str, commands: tuple[str, ...], scheduler: str | None, name: str
) -> None:
    assert load_platform("auto", site(own, hostname, *commands), scheduler).name == name


def test_a_profile_of_ones_own_is_recognised_before_a_built_in_one(own: Path) -> None:
    write(own, a_mine="extends: aurora\nhostnames: [aurora-uan-*]\n")
    assert load_platform("auto", site(own, "aurora-uan-0009")).name == "a-mine"


@pytest.mark.parametrize("hostnames", ["'*'", "5", "null", "{a: b}"])
def test_host_names_of_a_wrong_type_recognise_nothing(own: Path, hostnames: str) -> None:
    write(own, mine=f"hostnames: {hostnames}\n")
    assert load_platform("auto", site(own)).name == "local"


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"AEGIS_PLATFORM_DIR": "/site/aegis", "HOME": "/home/x"}, "/site/aegis"),
        ({"XDG_CONFIG_HOME": "/config", "HOME": "/home/x"}, "/config/aegis/platforms"),
        ({"HOME": "/home/x"}, "/home/x/.config/aegis/platforms"),
    ],
)
def test_where_ones_own_profiles_lie(environ: dict[str, str], folder: str) -> None:
    assert Site.here(environ).folders == (BUILT_IN, Path(folder))


def test_commands_are_looked_for_on_the_path_that_is_given(tmp_path: Path) -> None:
    command = tmp_path / "sbatch"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    assert Site.here({"PATH": str(tmp_path)}).has_command("sbatch")
    assert not Site.here({"PATH": "/nowhere"}).has_command("sbatch")
