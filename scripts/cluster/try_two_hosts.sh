#!/bin/sh
# Trains on a Ray cluster of two hosts that are made on this machine: each with an address, processes and a /dev/shm of its own (namespaces of
# Linux), and a cable between them. So nothing passes from one to the other but through a network, and files. The steps are those of
# docs/cluster.md; where there are two machines, only 2 to 4 are needed.
#
#   scripts/cluster/try_two_hosts.sh --steps 20
#   WORKERS=3+1 scripts/cluster/try_two_hosts.sh --steps 20
#
# Options go to train.py. WORKERS says how many workers each host has CPUs for (1+1), RATE how fast the cable is, as tc writes it (100mbit).
# PYTHON and RUN_DIR can be set, too. It takes ip (Debian: iproute2), and root or a system where everybody may make namespaces; exit code 77
# says that this one does not let it. Hosts, cable and all that runs there go away with this script, however it ends.
set -eu
isolated="--net --mount --pid --fork --kill-child --mount-proc"

if [ "${1:-}" != --inside ]; then
    cd "$(dirname "$0")/../.."
    for program in ip unshare nsenter; do
        if ! command -v $program > /dev/null; then
            echo "error: there is no $program to make hosts with; install iproute2 and util-linux" >&2
            exit 77
        fi
    done
    if [ "$(id -u)" = 0 ]; then user=; else user=--map-root-user; fi
    if ! why=$(unshare $user $isolated ip link add first type veth peer name second 2>&1); then
        echo "error: no hosts can be made here ($why); be root, and give a container CAP_SYS_ADMIN and CAP_NET_ADMIN" >&2
        exit 77
    fi
    PYTHON=$(realpath -s "${PYTHON:-.venv/bin/python}")
    RUN_DIR=$(realpath -m "${RUN_DIR:-runs/hosts-$(date +%Y%m%d-%H%M%S)}")
    FOLDER=$(mktemp -d /tmp/retape-XXXXXX) # short, since names of sockets must be
    export PYTHON RUN_DIR FOLDER
    # This process is not on the hosts: it ends them. What is in a namespace of processes ends with its first one, and that with unshare.
    unshare $user $isolated sh scripts/cluster/try_two_hosts.sh --inside "$@" &
    hosts=$!
    trap 'kill -KILL $hosts 2> /dev/null || true; rm -rf "$FOLDER" 2> /dev/null || { sleep 1; rm -rf "$FOLDER"; }' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    code=0
    wait $hosts || code=$?
    exit $code
fi

shift
first=10.77.0.1 second=10.77.0.2
here=${WORKERS:-1+1} there=${here#*+} here=${here%+*}

echo "1. making two hosts, $first and $second"
unshare $isolated sh -c 'touch "$FOLDER/there"; sleep infinity & wait' &
process=/proc/$!/ns
until [ -e "$FOLDER/there" ]; do
    [ -e "$process" ]
    sleep 0.1
done
on_second() { nsenter --net="$process/net" --mount="$process/mnt" --pid="$process/pid_for_children" "$@"; }
ip link add cable type veth peer name cable netns $!
for host in "" on_second; do
    $host mount -t tmpfs tmpfs /dev/shm
    $host ip link set lo up
    $host ip link set cable up
    if [ -n "${RATE:-}" ]; then $host tc qdisc add dev cable root tbf rate "$RATE" burst 64kb latency 400ms; fi
done
ip address add $first/24 dev cable
on_second ip address add $second/24 dev cable

# Nobody else can reach these hosts, so they need no token.
export RAY_AUTH_MODE=disabled
start() {
    name=$1
    shift
    if ! "$@" --disable-usage-stats --object-store-memory 80000000 --temp-dir "$FOLDER/$name" > "$FOLDER/log" 2>&1; then
        cat "$FOLDER/log" >&2
        exit 1
    fi
}
echo "2. starting a head on $first"
start 1 "$PYTHON" -m ray.scripts.scripts start --head --node-ip-address $first --num-cpus "$here" --include-dashboard false
echo "3. joining from $second"
start 2 on_second "$PYTHON" -m ray.scripts.scripts start --address $first:6379 --node-ip-address $second --num-cpus "$there"

echo "4. training on both, from $first"
"$PYTHON" scripts/train.py --address $first:6379 --workers $((here + there)) --run-dir "$RUN_DIR" "$@"

echo "5. result in $RUN_DIR"
"$PYTHON" - "$RUN_DIR/summary.json" << 'END'
import json, sys

summary = json.load(open(sys.argv[1]))
print("nodes", summary["nodes"])
for name in ("parameters_sha256", "losses_sha256"):
    print(name, summary[name])
END
