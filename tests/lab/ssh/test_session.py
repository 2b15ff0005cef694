"""One login, whatever happens: commands and files at the far end of a real sshd that asks for a one-time code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aegis.errors import SiteError
from aegis.schedulers.base import SchedulerUnavailable
from aegis.schedulers.ssh import connect, master
from aegis.schedulers.transport import Done
from tests.lab.conftest import wait_until
from tests.lab.test_hostile_names import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aegis.schedulers.ssh import Ssh

    from .sshd import Sshd

pytestmark = [pytest.mark.lab, pytest.mark.timeout(60)]
SECRET = "hf_secret_of_nobody"


@pytest.fixture
def said() -> list[str]:
    """What the transport said to its user."""
    return []


@pytest.fixture
def far(sshd: Sshd, said: list[str]) -> Iterator[Ssh]:
    sshd.start()
    with connect(sshd.target, said.append) as transport:
        yield transport


def test_one_code_for_a_whole_session(sshd: Sshd, far: Ssh, said: list[str]) -> None:
    assert far.name == "alice@cluster"
    assert far.home() == str(sshd.home)
    assert far.run(["id", "-un"]).out == "alice\n"
    assert far.run(["sh", "-c", "echo out; echo err >&2; exit 3"]) == Done(3, "out\n", "err\n")
    assert far.run(["cat"], text="in\nput").out == "in\nput"
    assert far.run(["sh", "-c", "exit 255"]).code == 255
    far.write("notes/a.txt", "text")
    assert far.read("notes/a.txt") == b"text"
    assert far.read("notes/a.txt", 2) == b"xt"
    assert far.read("notes/a.txt", 9) == b""
    far.remove("notes/a.txt")
    far.remove("notes/a.txt")
    assert not (sshd.home / "notes" / "a.txt").exists()
    assert sshd.logins == 1
    assert sshd.prompts == ["(alice@cluster) Verification code: "]
    assert said == []


def test_many_commands_at_once_are_eight_sessions_and_no_login(sshd: Sshd, far: Ssh) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda n: far.run(["sh", "-c", f"sleep 0.3; echo {n}"]).out, range(20)))
    assert answers == [f"{n}\n" for n in range(20)]
    assert sshd.logins == 1
    assert sshd.most_sessions == 8


def test_where_sshd_allows_fewer_sessions_they_wait(sshd: Sshd, said: list[str]) -> None:
    sshd.extra = ["MaxSessions 2"]
    sshd.start()
    with connect(sshd.target, said.append) as far, ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda n: far.run(["echo", str(n)]).out, range(5)))
    assert answers == [f"{n}\n" for n in range(5)]
    assert (sshd.logins, sshd.most_sessions) == (1, 2)


# ---------------------------------------------------------------------------------------------- the login


def test_a_wrong_code_is_said_in_words(sshd: Sshd, said: list[str]) -> None:
    sshd.start()
    (sshd.folder / "codes").write_text("00000000\n" * 9)
    with (
        pytest.raises(SiteError, match=r"cannot log in to alice@cluster: .*Permission denied") as error,
        connect(sshd.target, said.append),
    ):
        pytest.fail("it let us in")
    assert error.value.hint == "a one-time code is good once: wait for the next"
    assert said == [], "the last words are in the error alone"
    assert sshd.logins == 0


def test_an_sshd_that_is_not_there_is_said_in_words(sshd: Sshd) -> None:
    with (
        pytest.raises(SiteError, match="Connection refused") as error,
        connect(sshd.target, print),
    ):
        pytest.fail("nobody is there")
    assert error.value.hint == "does `ssh alice@cluster` work?"


def test_nobody_can_be_asked(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    sshd.start()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SSH_ASKPASS")}
    program = "from aegis.schedulers.ssh import connect\nwith connect('alice@cluster', print): pass"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environ,
        start_new_session=True,  # no terminal
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "Permission denied" in done.stderr
    assert sshd.logins == 0


def test_what_sshd_says_before_the_login_is_passed_on(sshd: Sshd, said: list[str]) -> None:
    banner = sshd.folder / "banner"
    banner.write_text("Authorized users only.\nReally.\n")
    sshd.extra = [f"Banner {banner}"]
    sshd.start()
    with connect(sshd.target, said.append) as far:
        assert far.run(["echo", "x"]) == Done(0, "x\n", "")
    assert said == ["Authorized users only.", "Really."]


def test_a_connection_that_the_user_has_open_is_used_and_left_open(sshd: Sshd, said: list[str]) -> None:
    sshd.start()
    sshd.configure("ControlMaster auto", f"ControlPath {sshd.folder}/user-%C", "ControlPersist 600")
    subprocess.run(["ssh", "-fN", sshd.target], check=True, timeout=30, stdin=subprocess.DEVNULL)
    try:
        with connect(sshd.target, said.append) as far:
            assert far.run(["id", "-un"]).out == "alice\n"
        assert (sshd.logins, len(sshd.prompts)) == (1, 1)
        assert subprocess.run(["ssh", "-O", "check", sshd.target], check=False).returncode == 0
        with connect(sshd.target, said.append) as far:
            subprocess.run(["ssh", "-O", "exit", sshd.target], check=True)
            assert far.run(["id", "-un"]).out == "alice\n", "its end is no harm"
        assert sshd.logins == 2
    finally:
        subprocess.run(["ssh", "-O", "exit", sshd.target], check=False)


def test_a_connection_of_the_user_that_hangs_is_not_used(
    sshd: Sshd, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(master, "CONTROL_TIMEOUT", 1.0)
    sshd.start()
    sshd.configure("ControlMaster auto", f"ControlPath {sshd.folder}/user-%C", "ControlPersist 600")
    subprocess.run(["ssh", "-fN", sshd.target], check=True, timeout=30, stdin=subprocess.DEVNULL)
    # The far end writes it down after it has let the user in: one that is stopped before that never does.
    wait_until(lambda: sshd.logins == 1)
    sshd.cut(signal.SIGSTOP)
    with connect(sshd.target, said.append) as far:
        assert far.run(["id", "-un"]).out == "alice\n"
    assert sshd.logins == 2
    subprocess.run(["ssh", "-O", "exit", sshd.target], check=True)


def test_a_control_path_without_a_master_is_no_connection(sshd: Sshd, said: list[str]) -> None:
    sshd.start()
    sshd.configure("ControlMaster auto", f"ControlPath {sshd.folder}/user-%C", "ControlPersist 600")
    with connect(sshd.target, said.append) as far:
        assert far.run(["id", "-un"]).out == "alice\n"
    assert not list(sshd.folder.glob("user-*"))


def test_forwards_and_commands_of_the_users_configuration_are_not_ours(sshd: Sshd, said: list[str]) -> None:
    sshd.start()
    sshd.configure(
        "LocalForward 1 localhost:1", "ExitOnForwardFailure yes", "RequestTTY force", "RemoteCommand false"
    )
    with connect(sshd.target, said.append) as far:
        assert far.run(["sh", "-c", "test -t 0 || echo none"]).out == "none\n"


# ---------------------------------------------------------------------------------------------- the connection is cut


def test_a_cut_connection_is_said_and_opened_again(sshd: Sshd, far: Ssh, said: list[str]) -> None:
    assert sshd.cut() == 1
    assert far.run(["echo", "again"]).out == "again\n"
    assert said == ["the connection to alice@cluster was cut; opening it again"]
    assert sshd.logins == len(sshd.prompts) == 2


def test_a_command_in_between_is_run_anew(sshd: Sshd, far: Ssh, said: list[str]) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = [
            pool.submit(far.run, ["sh", "-c", f"echo >>runs.{n}; sleep 1; echo {n}"]) for n in range(6)
        ]
        wait_until(lambda: len(list(sshd.home.glob("runs.*"))) == 6)
        sshd.cut()
        assert [answer.result().out for answer in answers] == [f"{n}\n" for n in range(6)]
    assert len(said) == 1
    assert sshd.logins == 2, "six commands miss it, one logs in"


def test_what_may_have_gone_through_is_not_run_anew(sshd: Sshd, far: Ssh, said: list[str]) -> None:
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(far.run, ["sh", "-c", "echo >>runs; sleep 9"], repeatable=False)
        wait_until((sshd.home / "runs").exists)
        sshd.cut()
        with pytest.raises(SchedulerUnavailable, match="was cut while sh ran"):
            answer.result()
    assert (sshd.home / "runs").read_text() == "\n"
    assert said == []
    assert far.run(["echo", "later"]).out == "later\n"
    sshd.cut()
    assert far.run(["echo", "safe"], repeatable=False).out == "safe\n", "it was cut before, not meanwhile"


def test_a_connection_that_cannot_be_opened_again(sshd: Sshd, far: Ssh, said: list[str]) -> None:
    good = (sshd.folder / "codes").read_text()
    (sshd.folder / "codes").write_text("")
    sshd.cut()
    for _ in range(2):
        with pytest.raises(SchedulerUnavailable, match="Permission denied"):
            far.run(["true"])
    assert len(said) == 1
    (sshd.folder / "codes").write_text(good)
    assert far.run(["echo", "back"]).out == "back\n"


def test_a_write_is_whole_or_not_at_all(sshd: Sshd, far: Ssh) -> None:
    far.write("file", "old")
    (sshd.folder / "codes").write_text("")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(far.write, "file", "new" * 50_000_000)
        wait_until(lambda: any(each.stat().st_size for each in sshd.home.glob(".file.*.tmp")))
        sshd.cut()
        with pytest.raises(SchedulerUnavailable):
            answer.result()
    assert (sshd.home / "file").read_text() == "old"
    wait_until(lambda: not list(sshd.home.glob(".file.*")), "the rest of it is removed")


def test_a_command_that_takes_too_long(sshd: Sshd, far: Ssh) -> None:
    began = time.monotonic()
    with pytest.raises(SchedulerUnavailable, match=r"sleep did not answer within 1 s on alice@cluster"):
        far.run(["sleep", "60"], timeout=1)
    assert time.monotonic() - began < 5
    assert far.run(["echo", "on"]).out == "on\n"
    assert sshd.logins == 1


# ---------------------------------------------------------------------------------------------- names and secrets


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_names_mean_themselves(sshd: Sshd, far: Ssh, name: str) -> None:
    assert far.run(["printf", "%s|", name, "-n", name, ""]).out == f"{name}|-n|{name}||"
    told = far.run(["sh", "-c", 'printf %s "$A"', name], environ={"A": name, "HOME": ""}, text=name)
    assert told.out == name
    path = f"{name}/{name}"
    far.write(path, name)
    assert (sshd.home / name / name).read_text() == name
    assert far.read(path) == name.encode()
    far.remove(path)
    assert [each.name for each in sshd.home.iterdir()] == [name]
    assert list((sshd.home / name).iterdir()) == []


def test_an_empty_value_unsets(far: Ssh) -> None:
    assert far.run(["sh", "-c", "echo ${HOME-unset}"], environ={"HOME": ""}).out == "unset\n"


def test_bytes_arrive_as_they_are(sshd: Sshd, far: Ssh) -> None:
    (sshd.home / "bytes").write_bytes(bytes(range(256)))
    assert far.read(f"{sshd.home}/bytes") == bytes(range(256))
    assert far.run(["cat", "bytes"]).out.startswith("\0\1")


def test_modes_of_files_and_folders(sshd: Sshd, far: Ssh) -> None:
    far.write("open/file", "x")
    far.write("script", "x", 0o755)
    far.write("closed/inner/file", "x", 0o600)
    modes = {
        str(each.relative_to(sshd.home)): f"{each.stat().st_mode & 0o777:o}" for each in sshd.home.rglob("*")
    }
    assert modes == {
        "open": "755",
        "open/file": "644",
        "script": "755",
        "closed": "700",
        "closed/inner": "700",
        "closed/inner/file": "600",
    }


def test_errors_of_files_are_those_of_files_here(sshd: Sshd, far: Ssh) -> None:
    far.write("file", "x")
    with pytest.raises(FileNotFoundError):
        far.read("nowhere")
    with pytest.raises(PermissionError, match="Permission denied"):
        far.write("/file", "x")
    with pytest.raises(IsADirectoryError):
        far.read(".")
    with pytest.raises(NotADirectoryError):
        far.read("file/x")
    far.write("folder/file", "x")
    with pytest.raises(OSError, match="directory"):
        far.write("folder", "x")


def commands() -> bytes:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                found.append((entry / "cmdline").read_bytes())
            except OSError:
                continue
    return b"\n".join(found)


def test_secrets_are_in_no_command_line(far: Ssh) -> None:
    def seen_while(work: Callable[[], object]) -> bytes:
        seen = []
        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive():
            seen.append(commands())
        return b"\n".join(seen)

    waiting = seen_while(lambda: far.run(["sleep", "0.5"], environ={"TOKEN": SECRET}, text=SECRET))
    assert b"sleep\0" in waiting

    def write() -> None:
        for _ in range(20):
            far.write("secret", SECRET, 0o600)

    writing = seen_while(write)
    assert b"secret.tmp" in writing or b".secret." in writing
    assert SECRET.encode() not in waiting + writing


# ---------------------------------------------------------------------------------------------- the shell over there


def test_a_noisy_profile_changes_no_answer(sshd: Sshd, said: list[str]) -> None:
    noise = 'echo "Welcome"; echo "Quota exceeded" >&2; printf "no newline"; printf "no newline" >&2\n'
    for name in (".bashrc", ".bash_profile", ".bash_logout"):
        (sshd.home / name).write_text(noise + "export FROM_PROFILE=yes\n")
    (sshd.home / ".bash_profile").write_text(f"{noise}trap 'echo bye' EXIT\nexport FROM_PROFILE=yes\n")
    sshd.start()
    with connect(sshd.target, said.append) as far:
        done = far.run(["sh", "-c", "echo $FROM_PROFILE; echo warning >&2; cat"], text="text\n")
        assert done == Done(0, "yes\ntext\n", "warning\n")
        assert far.home() == str(sshd.home)
        assert far.environ["FROM_PROFILE"] == "yes"
        assert far.environ["USER"] == "alice"
        far.write("file", "content")
        assert far.read("file") == b"content"
        with pytest.raises(FileNotFoundError):
            far.read("nowhere")
        with pytest.raises(SiteError, match="qsub cannot be run on alice@cluster"):
            far.run(["qsub", "-x"])


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/dash"])
def test_the_login_shell_may_be_another(sshd: Sshd, said: list[str], shell: str) -> None:
    sshd.shell(shell)
    (sshd.home / ".profile").write_text("export FROM_PROFILE=yes\n")
    sshd.start()
    with connect(sshd.target, said.append) as far:
        assert far.run(["sh", "-c", "echo $FROM_PROFILE$1", "x", "'"]).out == "yes'\n"
        far.write("it's", "x")
        assert far.read("it's") == b"x"


def test_an_account_that_runs_no_commands(sshd: Sshd, said: list[str]) -> None:
    sshd.shell("/usr/sbin/nologin")
    sshd.start()
    with (
        connect(sshd.target, said.append) as far,
        pytest.raises(SiteError, match=r"does not run commands: .*not available"),
    ):
        far.run(["true"])


# ---------------------------------------------------------------------------------------------- the end

HOLD = """
import sys, time
from aegis.schedulers.ssh import connect, master
from aegis.schedulers.transport import Done
with connect("alice@cluster", print) as far:
    print(far.run(["echo", "up"]).out, flush=True)
    if sys.argv[1] == "exception":
        raise RuntimeError
    far.run(["sleep", "60"])
"""


@pytest.mark.parametrize("end", ["exception", "SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_nothing_stays_however_it_ends(sshd: Sshd, end: str) -> None:
    sshd.start()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, end],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        if end != "exception":
            assert sshd.clients()
            wait_until(lambda: "sleep" in "".join(each.command for each in sshd.sessions()))
            os.kill(process.pid, signal.Signals[end])
        process.wait(20)
    wait_until(lambda: not sshd.clients(), "no ssh runs")
    wait_until(lambda: not list((sshd.folder / "tmp").iterdir()), "no socket is there")
    assert sshd.logins == 1
