"""Ray, where a model entry asks for it: one small cluster per instance, on ports of that instance. Pure.

Each member is one command under its agent: a shell that starts Ray there, and on rank 0 the engine once all members
have joined. Whatever ends first ends the command; the agent then ends the rest of that start, Ray's daemons included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.spec.machine import CPU_KIND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aegis.engines.base import Start
    from aegis.spec.deployment import ModelEntry

PROGRAM = "ray"  # stands beside the engine's own
TOKEN_VARIABLE = "RAY_AUTH_TOKEN"  # noqa: S105 - the name of the variable. Read by Ray from 2.52 on
# Of the internal ports: those that Ray would choose alike for two jobs on a node. It finds free ones for the rest.
HEAD_PORT_OFFSET = 48
HEAD_PORTS = 8  # taken in turn: a member that starts anew must not join the cluster that is about to end
CLIENT_PORT_OFFSET = HEAD_PORT_OFFSET + HEAD_PORTS
AGENT_PORT_OFFSET = CLIENT_PORT_OFFSET + 1
OBJECT_STORE_BYTES = 1 << 30  # Ray would take 30 % of the node's memory; engines pass little through it
JOIN_SECONDS = 1800  # for rank 0, which may be restarting

# $1: address of this member, $2: of rank 0, $3: its first port, $4: members, $5: port of Ray's client server, then the
# words of `ray start`, `--`, the engine. The agent's mark ends with the number of the start, which is the same for all
# members. Ray and vLLM know a node by a number. Ray's sockets need a short path.
_JOIN = r"""
number() {
  local found
  found=$(getent ahostsv4 "$1") && found=${found%%[[:space:]]*} || found=$1
  case $found in
    "$1") ;;
    127.*) found=$(hostname -I) && found=${found%% *} ;;  # a name that the node keeps for itself
  esac
  printf '%s\n' "$found"
}
leave() {
  trap '' TERM
  kill -TERM -- -$$ 2>/dev/null  # Ray's daemons write into the folder
  for _ in {1..20}; do
    rm -rf -- "$folder" 2>/dev/null && break
    sleep 0.1
  done
}
follow() {
  "$@" &
  child=$!
  wait "$child"
  local code=$?
  while kill -0 "$child" 2>/dev/null; do  # a signal ended the wait, not the child
    wait "$child"
    code=$?
  done
  return "$code"
}
here=$(number "$1") head=$2 port=$(($3 + ${AEGIS_START##*.} % TURNS)) members=$4 client_port=$5
shift 5
ray=()
while [ "$1" != -- ]; do
  ray+=("$1")
  shift
done
shift
command -v -- "${ray[0]}" >/dev/null || {
  echo "aegis: cannot start: distributed_executor is ray, and beside the engine there is no ${ray[0]}" >&2
  exit 127
}
folder=$(mktemp -d /tmp/aegis-ray.XXXXXX) || exit
child=
trap leave EXIT
trap '[ -z "$child" ] && exit 143; kill -TERM "$child" 2>/dev/null' TERM INT
export VLLM_HOST_IP=$here RAY_TMPDIR=$folder RAY_USAGE_STATS_ENABLED=0
ray+=(--node-ip-address="$here" --temp-dir="$folder" --disable-usage-stats)
""".replace("TURNS", str(HEAD_PORTS))

_HEAD = (
    _JOIN
    + r"""
python=$(command -v -- "${ray[0]}") && python=${python%/*}/python3
[ -x "$python" ] || python=python3
if "$python" -c 'import grpc' 2>/dev/null; then  # with it comes Ray's client server, which cannot be switched off
  ray+=(--ray-client-server-port="$client_port")
fi
"${ray[@]}" --head --port="$port" --include-dashboard=false || exit
export RAY_ADDRESS=$here:$port
follow "$python" -c '
import sys, time, ray
wanted, told = int(sys.argv[1]), 0
ray.init(log_to_driver=False, logging_level="ERROR")
while (joined := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if joined != told:
        print(f"aegis: {joined} of {wanted} nodes are in the Ray cluster", flush=True)
    told = joined
    time.sleep(0.2)
' "$members" || exit
follow "$@"
exit
"""
)

_MEMBER = (
    _JOIN
    + rf"""
head=$(number "$head")
until (exec 3<>"/dev/tcp/$head/$port") 2>/dev/null; do
  [ "$SECONDS" -lt {JOIN_SECONDS} ] || {{ echo "aegis: Ray of rank 0 does not answer at $head:$port" >&2; exit 1; }}
  sleep 0.2
done
follow "${{ray[@]}}" --address="$head:$port" --block
exit
"""
)


def uses_ray(start: Start) -> bool:
    """Tell whether Ray joins the parts of this instance: those on one node need nobody for it."""
    return start.members > 1 and start.entry.engine == "vllm" and start.entry.distributed_executor == "ray"


def why_not(entry: ModelEntry) -> tuple[str, str] | None:
    """Return what is wrong with an entry that asks for Ray, and what to do about it."""
    if entry.distributed_executor != "ray":
        return None
    if entry.engine == "sglang":
        return (
            "SGLang does not run on Ray",
            "leave `distributed_executor` out: SGLang joins its nodes by itself",
        )
    if entry.data_parallel_size > 1:
        return (
            "with Ray an instance has one replica, and `data_parallel_size` asks for more",
            "ask for more `instances`, or leave `distributed_executor` out",
        )
    return None


def command(start: Start, engine: Sequence[str]) -> tuple[str, ...]:
    """Return the command of a member: Ray's part, and on rank 0 the engine on top of it.

    Args:
        start: the member.
        engine: the engine's command; the other ranks need none, Ray starts its workers there.
    """
    ports, folder = start.member.internal_port, start.executable.rpartition("/")
    ray = [f"{folder[0]}{folder[1]}{PROGRAM}", "start", *_resources(start)]
    ray += ["--min-worker-port=0", "--max-worker-port=0"]  # any free ones
    ray += [f"--dashboard-agent-listen-port={ports + AGENT_PORT_OFFSET}"]
    place = [start.address, start.master, str(start.instance.members[0].internal_port + HEAD_PORT_OFFSET)]
    place += [str(start.members), str(ports + CLIENT_PORT_OFFSET)]
    if start.is_head:
        return ("bash", "-c", _HEAD, "aegis", *place, *ray, "--", *engine)
    return ("bash", "-c", _MEMBER, "aegis", *place, *ray, "--")


def _resources(start: Start) -> list[str]:
    """Return what Ray may give out here: it starts an idle process for each CPU that it is told of."""
    devices = len(start.member.devices)
    given = [f"--object-store-memory={OBJECT_STORE_BYTES}", f"--num-cpus={devices}"]
    return given if start.platform.node.device_kind == CPU_KIND else [*given, f"--num-gpus={devices}"]
