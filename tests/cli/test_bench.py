"""`aegis bench`: a stand-in `vllm` on PATH that writes down what it is given, and real simulated servers."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.bench.test_serve_started import stand_in as srun_stand_in
from tests.engines.conftest import sim, wait_until
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.engines.conftest import Sim

    from .conftest import Outcome

__all__ = ["sim"]
HOSTILE = "a 'b' \"c\" $(touch X); \n d"
RECORDED = Path(__file__).parents[1] / "fixtures" / "vllm" / "bench_rate10.json"
# Does what BEHAVIOUR says for its port: anything but a file name of a result is a shell command
VLLM = """#!{python}
import json, os, sys
folder = {folder!r}
words = sys.argv[1:]
after = lambda flag: words[words.index(flag) + 1]
port = after("--port")
with open(os.path.join(folder, "called." + port), "w") as file:
    kept = ("OPENAI_API_KEY", "no_proxy", "SLURMD_NODENAME", "CONDA")
    json.dump({{"argv": words, "env": {{k: v for k, v in os.environ.items() if k in kept}}}}, file)
does = json.load(open(os.path.join(folder, "behaviour"))).get(port, {recorded!r})
if os.path.isfile(does):
    os.makedirs(after("--result-dir"), exist_ok=True)
    with open(os.path.join(after("--result-dir"), after("--result-filename")), "w") as file:
        file.write(open(does).read())
    sys.exit(0)
os.execvp("sh", ["sh", "-c", does])
"""
REFUSED = RECORDED.with_name("bench_connrefused.json")


class Servers:
    """Servers that tell nothing but their models, and the stand-in that is to measure them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.behaviour: dict[int, str] = {}
        self.servers: list[ThreadingHTTPServer] = []
        self.programs = folder / "programs"
        self.programs.mkdir()
        vllm = self.programs / "vllm"
        vllm.write_text(VLLM.format(python=sys.executable, folder=str(folder), recorded=str(RECORDED)))
        vllm.chmod(0o755)
        self.does({})

    def does(self, behaviour: dict[int, str]) -> None:
        (self.folder / "behaviour").write_text(json.dumps(behaviour))

    def start(self, model: str = "m", root: str | None = None) -> int:
        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps({"data": [{"id": model, "root": root or model}]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("", 0), Answers)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.servers.append(server)
        return int(server.server_address[1])

    def endpoints(self, *ports: int, host: str = "127.0.0.1") -> None:
        (self.folder / "aegis_endpoints.txt").write_text("".join(f"{host}:{port}\n" for port in ports))

    def called(self, port: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / f"called.{port}").read_text())
        return found


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    monkeypatch.chdir(tmp_path)
    made = Servers(tmp_path)
    monkeypatch.setenv("PATH", f"{made.programs}:{os.environ['PATH']}")
    monkeypatch.setenv("AEGIS_PLATFORM", "local")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield made
    for server in made.servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def bench(aegis: Callable[..., Outcome], servers: Servers) -> Iterator[Callable[..., Outcome]]:
    before = signal.getsignal(signal.SIGTERM)
    yield lambda *args: aegis("bench", *args)
    signal.signal(signal.SIGTERM, before)
    assert not list(servers.folder.rglob("*aegis-bench-*")), "nothing temporary stays"


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def after(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_every_endpoint_is_measured_at_its_own_port(bench: Callable[..., Outcome], servers: Servers) -> None:
    ports = [servers.start(), servers.start("other/model")]
    servers.endpoints(*ports)
    done = bench(
        "--num-prompts", "7", "--output", "out.csv", "--", "--random-input-len", "5", "--metadata", HOSTILE
    )
    assert done.code == 0, done.err
    for port, model in zip(ports, ("m", "other/model"), strict=True):
        argv = servers.called(port)["argv"]
        assert argv[:2] == ["bench", "serve"]
        assert (after(argv, "--host"), after(argv, "--port")) == ("127.0.0.1", str(port))
        assert after(argv, "--model") == model
        assert after(argv, "--num-prompts") == "7"
        assert after(argv, "--metric-percentiles") == "90,99"
        assert HOSTILE in argv
        assert [argv[i + 1] for i, word in enumerate(argv) if word == "--random-input-len"][-1] == "5"
        assert "127.0.0.1" in servers.called(port)["env"]["no_proxy"].split(",")
    found = rows((servers.folder / "out.csv").read_text())
    assert [row["endpoint"] for row in found[:2]] == [f"127.0.0.1:{port}" for port in ports]
    assert [row["completed"] for row in found[:2]] == ["50", "50"]
    summaries = [(row["statistic"], row["model"]) for row in found[2:]]
    assert summaries == [
        (each, model) for model in ("m", "other/model", "") for each in ("min", "max", "mean", "total")
    ]
    assert "other/model" in done.out
    assert not (servers.folder / "X").exists()


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("echo 'ValueError: it broke' >&2; exit 3", "vllm bench serve ended with 3: ValueError: it broke"),
        ("exit 0", "vllm bench serve wrote no result"),
        (str(REFUSED), "5 of 5 requests failed"),
        ("kill -9 $$", "vllm bench serve ended with -9"),
        ("sleep 600", "vllm bench serve did not end within 1 s"),
    ],
)
def test_a_failing_endpoint_is_a_row_and_the_others_are_kept(
    does: str, said: str, bench: Callable[..., Outcome], servers: Servers
) -> None:
    ports = [servers.start(), servers.start()]
    servers.endpoints(*ports)
    servers.does({ports[0]: does})
    done = bench("--timeout", "1", "--output", "-")
    assert done.code == 7
    bad, good, *summary = rows(done.out)
    assert bad["error"] == said
    assert (good["error"], good["completed"]) == ("", "50")
    assert summary[-1]["error"] == "1 of 2 endpoints failed"
    assert said in done.err
    servers.does(dict.fromkeys(ports, does))
    assert bench("--timeout", "1").code == 1


def test_an_endpoint_that_is_not_there_is_a_row(bench: Callable[..., Outcome], servers: Servers) -> None:
    dead = free_port()
    servers.endpoints(servers.start(), dead)
    done = bench("--json")
    assert done.code == 7
    found = json.loads(done.out)
    assert [each["error"] for each in found["endpoints"]] == [None, "does not answer: Connection refused"]
    assert found["endpoints"][0]["vllm"]["num_prompts"] == 50
    assert (found["generator"], found["launcher"]) == ("vllm", "local")
    assert found["load"]["prompts"] == 100
    servers.endpoints(dead)
    assert bench().code == 1


def test_a_key_goes_by_the_environment_and_nowhere_else(
    bench: Callable[..., Outcome], servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = servers.start()
    servers.endpoints(port)
    monkeypatch.setenv("VLLM_API_KEY", "very-secret")
    done = bench("--json")
    called = servers.called(port)
    assert called["env"]["OPENAI_API_KEY"] == "very-secret"
    assert "very-secret" not in json.dumps(called["argv"]) + done.out + done.err


def test_names_that_would_break_a_shell(bench: Callable[..., Outcome], servers: Servers) -> None:
    port = servers.start(HOSTILE, root=str(servers.folder))
    servers.endpoints(port)
    (servers.folder / "it's").mkdir()
    done = bench("--output", "it's/$(x).csv")
    assert done.code == 0, done.err
    argv = servers.called(port)["argv"]
    assert after(argv, "--model") == HOSTILE
    assert after(argv, "--tokenizer") == str(servers.folder)
    assert len(rows((servers.folder / "it's" / "$(x).csv").read_text())) == 5


def test_only_endpoints_of_a_model(bench: Callable[..., Outcome], servers: Servers) -> None:
    ports = [servers.start("a"), servers.start("b")]
    servers.endpoints(*ports)
    done = bench("--model", "b", "--output", "-")
    assert [row["model"] for row in rows(done.out)] == ["b"] * 5
    missing = bench("--model", "c")
    assert missing.code == 4
    assert "there is: a, b" in missing.err


def test_an_environment_is_activated_first(
    bench: Callable[..., Outcome], servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = servers.start()
    servers.endpoints(port)
    environment = servers.folder / "it's env"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "activate").write_text(f'PATH="{servers.programs}:$PATH"; export CONDA=on\n')
    monkeypatch.setenv("PATH", os.environ["PATH"].partition(":")[2])
    assert bench("--conda-env", str(environment)).code == 0
    assert servers.called(port)["env"]["CONDA"] == "on"
    missing = bench("--conda-env", "/no/such", "--generator", "vllm")
    assert missing.code == 1
    assert "no conda environment at /no/such" in missing.err


def test_in_a_container(bench: Callable[..., Outcome], servers: Servers) -> None:
    image = servers.folder / "an image"
    (image / "bin").mkdir(parents=True)
    (image / "bin" / "vllm").symlink_to(servers.programs / "vllm")
    apptainer = Path(__file__).parents[1] / "fixtures" / "bin" / "apptainer"
    (servers.programs / "apptainer").symlink_to(apptainer)
    weights = servers.folder / "wei,ghts"
    weights.mkdir()
    port = servers.start(root=str(weights))
    servers.endpoints(port)
    Path(os.environ["HOME"], ".bash_profile").write_text(f'PATH="{servers.programs}:$PATH"\n')
    done = bench("--image", str(image), "--api-key-file", str(key_file(servers.folder)))
    assert done.code == 0, done.err
    assert servers.called(port)["env"]["OPENAI_API_KEY"] == "very-secret"
    seen = (image / "seen").read_text()
    assert str(weights) in json.loads(seen)["mounted"]
    assert "very-secret" not in seen


def key_file(folder: Path) -> Path:
    file = folder / "key"
    file.write_text("very-secret\n")
    file.chmod(0o600)
    return file


def test_within_a_job_it_runs_beside_the_endpoints(
    bench: Callable[..., Outcome], servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = srun_stand_in(servers.programs)
    ports = [servers.start(root="/only/there"), servers.start(root="/only/there")]
    hosts = ("127.0.0.2", "127.0.0.3")
    (servers.folder / "aegis_endpoints.txt").write_text(
        "".join(f"{host}:{port}\n" for host, port in zip(hosts, ports, strict=True))
    )
    for name, value in {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": ",".join(hosts)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VLLM_API_KEY", "very-secret")
    done = bench("--platform", "generic-slurm", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["launcher"] == "srun"
    for host, port in zip(hosts, ports, strict=True):
        called = servers.called(port)
        assert called["env"]["SLURMD_NODENAME"] == host
        assert after(called["argv"], "--host") == host
        assert after(called["argv"], "--tokenizer") == "/only/there"
    assert len(calls.read_text().splitlines()) == 1
    assert "very-secret" not in calls.read_text()


# ------------------------------------------------------------------------------------------- the built-in generator


def test_the_built_in_generator_on_real_servers(
    bench: Callable[..., Outcome], servers: Servers, sim: Callable[..., Sim]
) -> None:
    one, two = sim(), sim("--error-rate", "0.5", model="other")
    servers.endpoints(one.port, two.port)
    load = ("--num-prompts", "24", "--concurrency", "4", "--input-tokens", "40", "--output-tokens", "6")
    done = bench("--generator", "aegis", *load, "--json", "--output", "out.csv")
    assert done.code == 7, done.err
    found = json.loads(done.out)
    good, bad = found["endpoints"]
    assert (good["completed"], good["failed"], good["error"]) == (24, 0, None)
    assert (good["total_input_tokens"], good["total_output_tokens"]) == (24 * 40, 24 * 6)
    assert good["p99_e2el_ms"] >= good["median_ttft_ms"] > 0
    assert 0 < bad["failed"] < 24
    assert "HTTP 500" in bad["error"]
    assert found["load_generator"]["processes"] >= 1
    assert len(rows((servers.folder / "out.csv").read_text())) == 2 + 3 * 4


def test_without_vllm_the_built_in_one_is_taken(
    bench: Callable[..., Outcome], servers: Servers, sim: Callable[..., Sim], monkeypatch: pytest.MonkeyPatch
) -> None:
    (servers.programs / "vllm").unlink()
    monkeypatch.setenv("PATH", f"{servers.programs}:/usr/bin:/bin")
    servers.endpoints(sim().port)
    (servers.folder / "p.jsonl").write_text('{"prompt": "hello there", "output_tokens": 3}\n')
    file = ("--dataset", "jsonl", "--dataset-path", "p.jsonl", "--output-tokens", "-1", "--chat")
    done = bench(*file, "--num-prompts", "5", "--rate", "100", "--burstiness", "inf")
    assert done.code == 0, done.err
    assert "built-in generator (there is no vllm here)" in done.err
    missing = bench("--generator", "vllm")
    assert missing.code == 3
    assert "--conda-env" in missing.err


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--", "--port", "1"), "--port after --"),
        (("--generator", "aegis", "--", "--seed", "1"), "is for vllm"),
        (("--json", "--output", "-"), "both want stdout"),
        (("--rate", "1", "--concurrency", "1"), "exclude each other"),
        (("--dataset", "jsonl"), "--dataset-path"),
        (("--endpoints-file", "none"), "cannot be read"),
        (("--platform", "nowhere"), "unknown platform"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    args: tuple[str, ...], said: str, bench: Callable[..., Outcome], servers: Servers
) -> None:
    servers.endpoints(servers.start())
    done = bench(*args)
    assert done.code == 2
    assert said in done.err
    assert done.out == ""


def test_an_output_that_cannot_be_written_leaves_the_table(
    bench: Callable[..., Outcome], servers: Servers
) -> None:
    servers.endpoints(servers.start())
    done = bench("--output", "no/such/folder.csv")
    assert done.code == 1
    assert "--output" in done.err
    assert "50" in done.out


def test_help_names_the_commands_below(aegis: Callable[..., Outcome]) -> None:
    out = aegis("bench", "--help").out
    assert "[HANDLE] [-- ARG...]" in out
    assert "bench sweep" in out
    assert "bench compare" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_everything(number: int, servers: Servers) -> None:
    port = servers.start()
    servers.endpoints(port)
    mark = f"9{time.monotonic_ns() % 10**9}"
    servers.does({port: f"touch began; exec sleep {mark}"})
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "aegis", "bench"], stderr=subprocess.PIPE, cwd=servers.folder, text=True
    )
    wait_until((servers.folder / "began").exists)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 6, said
    assert "interrupted" in said
    assert not any(
        mark.encode() in (entry / "cmdline").read_bytes()
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and (entry / "cmdline").exists()
    )
    assert not list(servers.folder.rglob("*aegis-bench-*"))


def test_a_mistyped_command_is_no_job(aegis: Callable[..., Outcome]) -> None:
    done = aegis("bench", "swep")
    assert done.code == 2
    assert "did you mean `sweep`?" in done.err
