"""What stands on PATH: qsub, qstat, qdel, qhold, qrls, pbsnodes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from .options import NoVariable, UsageError, parse, read
from .show import print_json
from .wire import FINISHED, SYSTEM, TEXTS, UNKNOWN_JOB, UNKNOWN_QUEUE, Cut, Down, Settings, ask

TIMES = {"ctime", "etime", "stime", "mtime", "qtime", "obittime"}
QSUB_USAGE = "usage: qsub [-a date_time] [-A account_string] [-c interval]\n"
QSTAT_USAGE = (
    "usage: \nqstat [-f] [-J] [-p] [-t] [-x] [-E] [-F format | -w] [-D delim] [ job_identifier... ]\n"
)


class Command:
    """One command, and the site that it works on."""

    def __init__(self, name: str, spool: str) -> None:
        self.name = name
        self.spool = Path(spool)
        self.site = Settings.load(self.spool)

    def ask(self, **question: Any) -> dict[str, Any]:
        """Ask the server; a link that is dead shows itself late.

        Raises:
            Down: it does not answer.
        """
        if (self.spool / "unreachable").exists():
            time.sleep(self.site.unreachable)
            self.say("No route to host", plain=True)
            raise Down
        try:
            return ask(self.spool, question)
        except Cut:
            raise
        except Down:
            self.say("Connection refused", plain=True)
            raise

    def say(self, text: str, *, plain: bool = False) -> None:
        """Complain."""
        sys.stderr.write(f"{text}\n" if plain else f"{self.name}: {text}\n")

    def head(self) -> dict[str, Any]:
        """Return what stands above every answer in JSON."""
        return {
            "timestamp": int(time.time()),
            "pbs_version": self.site.release,
            "pbs_server": self.site.server,
        }


def out(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")


def leave(code: int) -> NoReturn:
    """Exit with an error number of PBS; a shell keeps the rest by 256."""
    sys.stdout.flush()
    sys.exit(code % 256)


def qsub(spool: str, argv: list[str]) -> NoReturn:
    """Submit a script: a file, or standard input."""
    command = Command("qsub", spool)
    script = ""
    try:
        _, rest = parse(argv)
        file = rest[0] if rest and rest[0] != "-" else ""
        try:
            script = Path(file).read_text() if file else sys.stdin.read()
        except OSError:
            command.say("script file:: No such file or directory")
            leave(1)
        told = read(argv, script)
    except NoVariable:
        command.say("cannot send environment with the job")
        leave(1)
    except UsageError as error:
        command.say(str(error))
        command.say(QSUB_USAGE, plain=True)
        leave(2)
    try:
        answer = command.ask(
            verb="submit",
            values=told.values,
            resources=told.resources,
            variables=told.variables,
            script=script,
            name=Path(file).name if file else "STDIN",
            cwd=str(Path.cwd()),
            arguments=" ".join(argv),
        )
    except Down:
        command.say(f"cannot connect to server {command.site.server[:7]} (errno={SYSTEM})")
        leave(SYSTEM)
    if "error" in answer:
        command.say(answer["text"] or TEXTS[answer["error"]])
        leave(answer["error"])
    out(answer["id"])
    leave(0)


def qstat(spool: str, argv: list[str]) -> NoReturn:
    """Show jobs, or queues."""
    command = Command("qstat", spool)
    flags, ids = _split(argv)
    if "--version" in argv:
        out(f"pbs_version = {command.site.release}")
        leave(0)
    if "u" in flags and "f" in flags:
        command.say("conflicting options.")
        command.say(QSTAT_USAGE, plain=True)
        leave(2)
    try:
        if "Q" in flags:
            print_json({**command.head(), "Queue": command.ask(verb="queues")["queues"]})
            leave(0)
        shown, code = _jobs(command, flags, ids)
    except Down:
        if flags.get("F") == "json":
            print_json(command.head())
        command.say(f"cannot connect to server {command.site.server} (errno={SYSTEM})")
        leave(255)
    if flags.get("F") == "json":
        print_json({**command.head(), **({"Jobs": _dated(shown)} if shown else {})})
    else:
        _table(shown)
    leave(code)


def _jobs(command: Command, flags: dict[str, str], ids: list[str]) -> tuple[dict[str, Any], int]:
    """Return the jobs that are known, and the last complaint about others."""
    code = 0
    known = [text for text in ids if text[0].isdecimal()]
    for text in ids:
        if text not in known:
            command.say(f"Unknown queue destination {text}")
            code = UNKNOWN_QUEUE
    if ids and not known:
        return {}, code
    shown = {}
    for each in command.ask(verb="stat", ids=known, history="x" in flags, parts="t" in flags)["found"]:
        if "job" in each:
            shown[each["id"]] = each["job"]
        else:
            command.say(_complaint(each))
            code = each["error"]
    return shown, code


def qdel(spool: str, argv: list[str]) -> NoReturn:
    """Delete jobs."""
    command = Command("qdel", spool)
    flags, ids = _split(argv)
    if not ids:
        leave(2)
    try:
        answer = command.ask(verb="delete", ids=ids, force=flags.get("W") == "force")
    except Cut:  # the client has no words for it
        leave(0)
    except Down:
        command.say(f"Couldn't connect to cluster: {command.site.server}", plain=True)
        leave(SYSTEM)
    code = 0
    for each in answer["refused"]:
        code = each["error"]
        named = each["given"] if code == UNKNOWN_JOB else each["id"]
        command.say(f"{TEXTS[code]} {named}")
    leave(code)


def qhold(spool: str, argv: list[str]) -> NoReturn:
    """Hold a job."""
    _hold("qhold", spool, argv)


def qrls(spool: str, argv: list[str]) -> NoReturn:
    """Release a job."""
    _hold("qrls", spool, argv)


def _hold(name: str, spool: str, argv: list[str]) -> NoReturn:
    command = Command(name, spool)
    try:
        answer = command.ask(verb="hold", id=argv[-1], release=name == "qrls")
    except Down:
        leave(SYSTEM)
    if "error" in answer:
        command.say(f"{TEXTS[answer['error']]} {answer['text']}")
    leave(answer.get("error", 0))


def pbsnodes(spool: str, argv: list[str]) -> NoReturn:
    """Show nodes."""
    command = Command("pbsnodes", spool)
    flags, names = _split(argv)
    try:
        found = command.ask(verb="nodes")["nodes"]
    except Down:
        command.say(f"cannot connect to server {command.site.server}, error={SYSTEM}")
        leave(1)
    if "l" in flags:
        for name, node in found.items():
            if node["state"] != "free":
                out(f"{name:<20} {node['state']} {node['comment']}")
        leave(0)
    wanted = names or list(found)
    shown = {name: found.get(name, {"Error": "Unknown node "}) for name in wanted}
    print_json({**command.head(), "nodes": shown})
    leave(0)


# ------------------------------------------------------------------------------------------------ how


def _split(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return flags and the rest; -F, -u and -W have values."""
    flags: dict[str, str] = {}
    rest = []
    words = iter(argv)
    for word in words:
        if not word.startswith("-"):
            rest.append(word)
        elif word[1] in "FuW":
            flags[word[1]] = word[2:] or next(words, "")
        else:
            flags |= dict.fromkeys(word[1:], "")
    return flags, rest


def _complaint(each: dict[str, Any]) -> str:
    code, text = each["error"], each["id"]
    if code == FINISHED:
        return f"{text} Job has finished, use -x or -H to obtain historical job information"
    if code == UNKNOWN_JOB:
        return f"Unknown Job Id {text}"
    return f"illegally formed job identifier: {text}"


def _dated(jobs: dict[str, Any]) -> dict[str, Any]:
    """Write times as the one who asks reads them."""
    return {
        name: {key: time.ctime(value) if key in TIMES else value for key, value in attributes.items()}
        for name, attributes in jobs.items()
    }


def _table(jobs: dict[str, Any]) -> None:
    if jobs:
        out("Job id            Name             User              Time Use S Queue")
        out("----------------  ---------------- ----------------  -------- - -----")
    for name, job in jobs.items():
        short = name if len(name) <= 17 else f"{name[:16]}*"
        user = job["Job_Owner"].partition("@")[0]
        used = job.get("resources_used", {}).get("cput", "0")
        out(
            f"{short:<17} {job['Job_Name'][:16]:<16} {user:<16}  {used:>8} {job['job_state']} {job['queue']:<16}"
        )
