from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from aegis.errors import AegisError, ConfigError
from aegis.staging.environment import content_key, ready_lines, unpack_argv, unpacked

UNPACK = """import pathlib, sys
root = pathlib.Path(sys.argv[0]).resolve().parents[1]
with open(root / "times", "a") as log:
    log.write("x")
"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    root = tmp_path / "an env"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "activate").write_text('export ACTIVE="$conda_env"\n')
    (root / "bin" / "conda-unpack").write_text(UNPACK)
    (root / "bin" / "python").symlink_to("/usr/bin/env")
    (root / "bin" / "python").unlink()
    (root / "bin" / "python").write_text('#!/bin/sh\nexec python3 "$@"\n')
    (root / "bin" / "python").chmod(0o755)
    return root


@pytest.fixture
def tarball(environment: Path, tmp_path: Path) -> Path:
    file = tmp_path / "x: y.tar.gz"
    subprocess.run(["tar", "--force-local", "-czf", file, "-C", environment, "."], check=True)
    return file


def test_the_key_is_of_the_content(tarball: Path, tmp_path: Path) -> None:
    same = tmp_path / "same"
    same.write_bytes(tarball.read_bytes())
    assert content_key(str(same)) == content_key(str(tarball))
    same.write_bytes(tarball.read_bytes() + b"x")
    assert content_key(str(same)) != content_key(str(tarball))
    with pytest.raises(ConfigError, match="No such file"):
        content_key(str(tmp_path / "nowhere"))


def test_all_cores_decompress_where_something_can() -> None:
    assert "--use-compress-program=pigz" in unpack_argv("/e.tar.gz", "/f", {"pigz"})
    assert unpack_argv("/e.tar", "/f", {"pigz"})[-4:] == ["-f", "/e.tar", "-C", "/f"]
    assert not any("compress" in word for word in unpack_argv("/e.tgz", "/f"))


def test_it_is_unpacked_for_a_while_at_the_same_place(tarball: Path, tmp_path: Path) -> None:
    places = []
    for _ in range(2):
        with unpacked(str(tarball), str(tmp_path), "key") as folder:
            assert Path(folder, "bin", "activate").is_file()
            places.append(folder)
    assert places[0] == places[1]
    assert not list(tmp_path.glob("aegis-unpacking*"))


def test_what_a_killed_run_left_is_removed_first(tarball: Path, tmp_path: Path) -> None:
    left = tmp_path / f"aegis-unpacking-{os.getuid()}-key"
    left.mkdir()
    (left / "half").touch()
    with unpacked(str(tarball), str(tmp_path), "key") as folder:
        assert not Path(folder, "half").exists()


def test_two_that_unpack_the_same_take_turns(tarball: Path, tmp_path: Path) -> None:
    inside, most = [0], [0]

    def one() -> None:
        with unpacked(str(tarball), str(tmp_path), "key"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            inside[0] -= 1

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_what_is_no_environment_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.tar.gz").write_text("no tar")
    with (
        pytest.raises(AegisError, match="cannot be unpacked"),
        unpacked(f"{tmp_path}/bad.tar.gz", str(tmp_path), "k"),
    ):
        pass
    subprocess.run(["tar", "-cf", tmp_path / "empty.tar", "-T", "/dev/null"], check=True)
    with (
        pytest.raises(ConfigError, match="no bin/activate"),
        unpacked(f"{tmp_path}/empty.tar", str(tmp_path), "k"),
    ):
        pass
    assert not list(tmp_path.glob("aegis-unpacking*"))


def run(environment: Path | str) -> subprocess.CompletedProcess[str]:
    script = "\n".join([*ready_lines(str(environment)), 'echo "$ACTIVE"'])
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)


def test_an_environment_is_made_to_fit_its_node_once(environment: Path) -> None:
    starts = [subprocess.Popen(["bash", "-c", "\n".join(ready_lines(str(environment)))]) for _ in range(3)]
    assert [start.wait() for start in starts] == [0, 0, 0]
    assert (environment / "times").read_text() == "x"
    assert run(environment).stdout.strip() == str(environment)


def test_one_that_fails_is_tried_again_at_the_next_start(environment: Path) -> None:
    (environment / "bin" / "conda-unpack").write_text("raise SystemExit(1)")
    failed = run(environment)
    assert failed.returncode == 1
    assert "could not be unpacked" in failed.stderr
    (environment / "bin" / "conda-unpack").write_text(UNPACK)
    assert run(environment).returncode == 0


def test_one_that_was_not_staged_is_named(tmp_path: Path) -> None:
    missing = run(tmp_path / "$(touch pwned)")
    assert missing.returncode == 127
    assert "is not staged here" in missing.stderr
    assert not (tmp_path / "pwned").exists()
