#!/bin/bash
# A sweep on SLURM: a Ray node on each of the job's machines, and `bar sweep` on the first of them.
#
#   sbatch --nodes 2 --gpus-per-node 8 deploy/slurm.sh table.yaml --out /shared/runs
#
# All after the script's name goes to `bar sweep`. OUT must be on a file system of all nodes, and `bar` in the same place
# on each, such as .venv in a shared folder. When the time is over, submit the same again: it goes on.
# The nodes talk to the first one at its first IPv4 address that is no loopback; ADDRESS=… chooses another.
#SBATCH --job-name=bar-sweep
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue

set -euo pipefail

: "${SLURM_JOB_NODELIST:?there are no nodes: hand this script to sbatch}"
BIN=${BIN:-.venv/bin}
PORT=${PORT:-6379}
export RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${nodes[0]}
# by name it may be 127.0.1.1, as on Debian: then one of its networks' addresses
address=${ADDRESS:-$(
    for which in --ip-address --all-ip-addresses; do
        srun --nodes=1 --ntasks=1 --nodelist="$first" hostname "$which" || true
    done | awk '{for (i = 1; i <= NF; i++) if ($i ~ /^[0-9.]+$/ && $i !~ /^127\./ && !found++) print $i}'
)}
: "${address:?$first has no IPv4 address but loopbacks: say by ADDRESS=… where the other nodes reach it}"

# Ray's nodes trust whoever knows this token; a job of its own has one of its own.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export RAY_AUTH_MODE RAY_AUTH_TOKEN

# node MACHINE OPTIONS: a Ray node on a machine of this job, for as long as the job lasts; it may use all cores
node() {
    local machine=$1
    shift
    (
        over=
        trap 'over=1; kill "$node"' TERM # the sweep has ended
        srun --overlap --cpu-bind=none --nodes=1 --ntasks=1 --nodelist="$machine" \
            "$BIN/ray" start "$@" --num-cpus="${SLURM_CPUS_ON_NODE:-1}" --include-dashboard=false --block &
        node=$!
        wait "$node" || true
        [ -n "$over" ] || echo "slurm.sh: there is no Ray node on $machine: it did not join, or has ended" >&2
    ) &
}

node "$first" --head --node-ip-address="$address" --port="$PORT"
for machine in "${nodes[@]:1}"; do
    node "$machine" --address="$address:$PORT"
done

for _ in $(seq 60); do # the first node is there within a minute or two; others may come later, they are used then
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$first" \
        "$BIN/ray" status --address "$address:$PORT" > /dev/null 2>&1 && break
    sleep 2
done

code=0
srun --overlap --nodes=1 --ntasks=1 --nodelist="$first" "$BIN/bar" sweep "$@" --ray "$address:$PORT" || code=$?
mapfile -t started < <(jobs -p)
kill "${started[@]}" 2> /dev/null || true
exit "$code"
