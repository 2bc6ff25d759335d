#!/bin/sh
# Trains as a submitted job on a Ray cluster of this machine alone: starts a head, submits the job, follows its log, prints the hash of the
# result, and ends the head. The steps are those of docs/cluster.md; on a cluster that runs already only 2 and 3 are needed.
#
#   scripts/cluster/try_job.sh --steps 20
#
# Options go to train.py. It takes ray[default]: .venv/bin/python -m pip install 'ray[default]'.
# PYTHON, PORT, DASHBOARD_PORT, CPUS and RUN_DIR can be set in the environment.
set -eu
cd "$(dirname "$0")/../.."
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
port=${PORT:-6379} dashboard=http://127.0.0.1:${DASHBOARD_PORT:-8265}
run=$(realpath -m "${RUN_DIR:-runs/job-$(date +%Y%m%d-%H%M%S)}")
log=$(mktemp)
# A head runs whatever it is sent, so this one takes it only from who has a token that is made for it here.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$("$python" -c "import secrets; print(secrets.token_hex(32))")
answers() {
    "$python" - "$dashboard/api/version" <<'END'
import sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=2)
except urllib.error.HTTPError:
    pass  # it answers, and wants the token
except OSError:
    sys.exit(1)
END
}
ray() { "$python" -m ray.scripts.scripts "$@"; }

echo "1. starting a head at port $port"
"$python" -m ray.scripts.scripts start --head --block --port "$port" --num-cpus "${CPUS:-2}" \
    --dashboard-host 127.0.0.1 --dashboard-port "${DASHBOARD_PORT:-8265}" --disable-usage-stats > "$log" 2>&1 &
head=$!
# By its number, so that no other Ray of this machine is ended, as ray stop would.
trap 'kill $head 2> /dev/null || true; wait $head || true; rm -f "$log"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
tries=0
until answers; do
    tries=$((tries + 1))
    if [ $tries -gt 60 ] || ! kill -0 $head 2> /dev/null; then
        cat "$log" >&2
        echo "error: no head answers at $dashboard; is ray[default] installed, and are the ports free (PORT, DASHBOARD_PORT)?" >&2
        exit 1
    fi
    sleep 1
done

echo "2. submitting the job"
# The job runs in a copy of this folder that goes away with it, so the run folder is named by its full path.
ray job submit --address "$dashboard" --working-dir . --runtime-env scripts/cluster/runtime_env.yaml -- \
    "$python" scripts/train.py --address auto --workers 2 --run-dir "$run" "$@"

echo "3. result in $run"
"$python" -c "import json, sys; print('parameters_sha256', json.load(open(sys.argv[1]))['parameters_sha256'])" "$run/summary.json"
