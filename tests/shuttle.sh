#!/bin/sh
# The lane table and the store in the orders that a checker of threads makes up: what was explored,
# and after how many schedules each planted fault was found. A failure prints how to repeat it.
#
# FENCEGATE_SHUTTLE_SCHEDULES, FENCEGATE_SHUTTLE_SECONDS: how much of each scenario, by each of the
# two schedulers. FENCEGATE_SHUTTLE_SEED: where the seeds begin.
set -eu
cd "$(dirname "$0")/.."
mkdir -p target
log=target/shuttle.log
export RUST_BACKTRACE=0
if cargo test --workspace --no-fail-fast --lib --features shuttle,faults orders:: -- --nocapture >"$log" 2>&1; then
    # Planted faults panic, so the log is full of failures that are as they should be.
    grep -E '^(explored|exhausted|found)' "$log" | sort
    awk '/^explored/ { random += $3; pct += $6 } /^exhausted/ { all += $4 } /^found/ { found += 1 }
         END { printf "%d random and %d PCT schedules, %d in full; %d planted faults found\n", random, pct, all, found }' "$log"
else
    cat "$log"
    exit 1
fi
