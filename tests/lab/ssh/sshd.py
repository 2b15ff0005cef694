"""A real sshd that asks for a one-time code, and nothing of this machine changed.

The code is asked by PAM's google-authenticator. The codes are those that it keeps for emergencies: each is good once, and
none waits for a clock. Accounts and PAM's rules are bind mounts in a mount namespace of sshd's own; with a process namespace
besides, nothing that somebody starts over there outlives it.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.conftest import Process

if TYPE_CHECKING:
    from collections.abc import Sequence

PROMPT = "Verification code: "
ALIAS = "cluster"
UID = 5001
PATIENCE = 10.0  # seconds
SSHD = "/usr/sbin/sshd"
OWN = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
SHARED = ("unshare", "--mount")  # on a host of another lab, which has processes and accounts of its own

START = f"""cd "$1" || exit
if [ -e passwd ]; then mount -t tmpfs tmpfs /run || exit; fi
mkdir -p /run/sshd || exit
for file in passwd group shadow; do [ ! -e "$file" ] || mount --bind "$file" "/etc/$file" || exit; done
mount --bind pam /etc/pam.d/sshd && exec {SSHD} -D -f "$1/sshd_config" -E "$1/sshd.log\""""

ASKPASS = """#!/bin/sh
cd "$(dirname "$0")" || exit
printf '%s\\n' "$1" >>prompts
head -n 1 codes && sed -i 1d codes"""


def missing() -> str:
    """Return what keeps the lab from being started here, if anything does."""
    if os.geteuid():
        return "an sshd with accounts of its own needs root"
    if not Path(SSHD).exists() or not shutil.which("ssh"):
        return "needs the packages openssh-server and openssh-client"
    folders = ("lib*/security", "lib/*/security", "usr/lib*/security", "usr/lib/*/security")
    if not any([*Path("/").glob(f"{folder}/pam_google_authenticator.so")] for folder in folders):
        return "needs the package libpam-google-authenticator"
    if subprocess.run([*OWN, "true"], capture_output=True, check=False).returncode:
        return "needs the right to make mount and process namespaces"
    return ""


class Sshd:
    """One sshd, one account, and what a user's machine needs to log in there as `cluster`."""

    def __init__(  # the same on loopback and on the login host of another lab
        self,
        folder: Path,
        *,
        user: str = "alice",
        uid: int = UID,
        home: Path | None = None,
        enter: Sequence[str] = (),
        host: str = "127.0.0.1",
        port: int = 22,
    ) -> None:
        """Write every file.

        Args:
            folder: of the lab; others must be able to enter it.
            user: who logs in.
            uid: of an account that only this sshd knows; a host that is entered has accounts already.
            home: of that account (default: one in the folder).
            enter: what begins a command that runs on the host of the sshd.
            host: its address, as the user's machine sees it.
            port: there.
        """
        self.folder, self.user, self.enter = folder, user, tuple(enter)
        self.home = home or folder / "home"
        self.log = folder / "sshd.log"
        self.target = f"{user}@{ALIAS}"
        self.extra: list[str] = []  # lines of sshd_config
        self._uid, self._address = uid, (host, port)
        self._process: subprocess.Popen[bytes] | None = None
        folder.chmod(0o755)
        self._write_codes()
        if not enter:
            self._write_accounts()
        self._write_client()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "hostkey"], check=True)
        key = (folder / "hostkey.pub").read_text().rsplit(" ", 1)[0]
        (folder / "known_hosts").write_text(f"{ALIAS} {key}\n")

    # ------------------------------------------------------------------------------------------- the far end

    def start(self) -> None:
        """Start it and wait until it listens."""
        self._write_config()
        self.log.write_text("")
        namespaces = SHARED if self.enter else OWN
        with (self.folder / "start.log").open("wb") as trouble:
            self._process = subprocess.Popen(
                [*self.enter, *namespaces, "bash", "-c", START, "lab", str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=trouble,
                stderr=trouble,
            )
        deadline = time.monotonic() + PATIENCE
        while "Server listening" not in self.log.read_text():
            assert self._process.poll() is None, (self.folder / "start.log").read_text()
            assert time.monotonic() < deadline, "sshd does not listen"
            time.sleep(0.01)

    def stop(self) -> None:
        """End it, every connection, and (on loopback) what was started through them."""
        self.cut()
        if listener := self._listener():
            os.kill(listener, signal.SIGKILL)
        if self._process:
            self._process.wait()

    def cut(self, number: int = signal.SIGKILL) -> int:
        """Cut every connection, or let it hang (SIGSTOP); return how many there were."""
        listener = self._listener()
        monitors = _children(listener) if listener else []
        for pid in [*monitors, *(child for monitor in monitors for child in _children(monitor))]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return len(monitors)

    def shell(self, path: str) -> None:
        """Give the account another login shell."""
        accounts = self.folder / "passwd"
        accounts.write_text(accounts.read_text().replace(f"{self.home}:/bin/bash", f"{self.home}:{path}"))

    def sessions(self) -> list[Process]:
        """Return what runs over there."""
        return [each for each in self._tree() if str(self.folder) not in each.command]

    @property
    def logins(self) -> int:
        """How often somebody logged in."""
        return self.log.read_text().count("Accepted ")

    @property
    def most_sessions(self) -> int:
        """How many sessions there were at once."""
        now = most = 0
        for word in re.findall(r"^(Starting|Close) session: ", self.log.read_text(), re.MULTILINE):
            now += 1 if word == "Starting" else -1
            most = max(most, now)
        return most

    def give(self, path: Path) -> Path:
        """Make a file or folder the account's own."""
        os.chown(path, self._uid, self._uid)
        return path

    # ------------------------------------------------------------------------------------------- the near end

    def code(self) -> str:
        """Return a code that was not used yet."""
        first, *rest = (self.folder / "codes").read_text().split()
        (self.folder / "codes").write_text("".join(f"{code}\n" for code in rest))
        return first

    @property
    def prompts(self) -> list[str]:
        """What was asked through SSH_ASKPASS."""
        try:
            return (self.folder / "prompts").read_text().splitlines()
        except FileNotFoundError:
            return []

    @property
    def path(self) -> str:
        """PATH of a machine whose ssh knows `cluster`."""
        return f"{self.folder / 'bin'}:{os.environ['PATH']}"

    @property
    def askpass(self) -> dict[str, str]:
        """Variables by which ssh gets its codes without a terminal."""
        return {"SSH_ASKPASS": str(self.folder / "askpass"), "SSH_ASKPASS_REQUIRE": "force"}

    def clients(self) -> list[Process]:
        """Return every process at the near end that has to do with this lab."""
        far = {each.pid for each in self._tree()}
        pids = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        found = [Process(pid, _command(pid)) for pid in pids - far]
        return [each for each in found if str(self.folder) in each.command and each.is_alive]

    def configure(self, *lines: str) -> None:
        """Add lines to the user's own configuration."""
        with (self.folder / "ssh_config").open("a") as stream:
            stream.writelines(f"  {line}\n" for line in lines)

    # ------------------------------------------------------------------------------------------- files

    def _write_codes(self) -> None:
        codes = [str(code) for code in random.sample(range(10_000_000, 99_999_999), 60)]
        (self.folder / "codes").write_text("".join(f"{code}\n" for code in codes))
        secret = self.folder / "otp"
        # The module rewrites the file to strike out what was used: 0600, and root's.
        secret.write_text("\n".join(["A" * 26, '" RATE_LIMIT 90 30', '" TOTP_AUTH', *codes, ""]))
        secret.chmod(0o600)
        module = f"pam_google_authenticator.so secret={secret} user=root"
        (self.folder / "pam").write_text(
            f"auth required {module} no_increment_hotp [authtok_prompt={PROMPT}]\n"
            "account required pam_permit.so\n"
            "session required pam_permit.so\n"
        )

    def _write_accounts(self) -> None:
        lines = {
            "passwd": f"{self.user}:x:{self._uid}:{self._uid}::{self.home}:/bin/bash",
            "group": f"{self.user}:x:{self._uid}:",
            "shadow": f"{self.user}:*:19000:0:99999:7:::",
        }
        for name, line in lines.items():
            kept = [
                each
                for each in Path("/etc", name).read_text().splitlines()
                if not each.startswith(f"{self.user}:")
            ]
            (self.folder / name).write_text("\n".join([*kept, line, ""]))
        (self.folder / "shadow").chmod(0o600)
        self.home.mkdir(exist_ok=True)
        self.give(self.home)

    def _write_config(self) -> None:
        host, port = self._address
        lines = [
            *self.extra,
            f"Port {port}",
            f"ListenAddress {'0.0.0.0' if self.enter else host}",
            f"HostKey {self.folder / 'hostkey'}",
            "PidFile none",
            "UsePAM yes",
            "KbdInteractiveAuthentication yes",
            "PasswordAuthentication no",
            "PubkeyAuthentication no",
            "AuthenticationMethods keyboard-interactive",
            "PermitRootLogin yes",
            "UseDNS no",
            "PrintMotd no",
            "LogLevel VERBOSE",
        ]
        (self.folder / "sshd_config").write_text("".join(f"{line}\n" for line in lines))

    def _write_client(self) -> None:
        host, port = self._address
        lines = [
            f"Host {ALIAS}",
            f"  HostName {host}",
            f"  Port {port}",
            f"  HostKeyAlias {ALIAS}",
            f"  UserKnownHostsFile {self.folder / 'known_hosts'}",
            "  GlobalKnownHostsFile /dev/null",
            "  IdentitiesOnly yes",
            "  PreferredAuthentications keyboard-interactive",
        ]
        (self.folder / "ssh_config").write_text("".join(f"{line}\n" for line in lines))
        (self.folder / "bin").mkdir()
        wrapper = f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.folder}/ssh_config "$@"\n'
        for name, text in (("bin/ssh", wrapper), ("askpass", ASKPASS)):
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)

    def _tree(self) -> list[Process]:
        """Return every process that the start of sshd led to."""
        found, rest = [], [self._process.pid] if self._process else []
        while rest:
            found.append(Process(rest.pop(), ""))
            rest += _children(found[-1].pid)
        return [Process(each.pid, _command(each.pid)) for each in found]

    def _listener(self) -> int | None:
        for each in self._tree():
            if each.command.startswith((SSHD, "sshd: ")) and str(self.folder) in each.command:
                return each.pid
        return None


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
