#!/bin/sh
# The crash tests for as long as it takes: all there is to hit, where the usual run takes a part.
#
#   FENCEGATE_KILLS          kills under load, 1000 by default
#   FENCEGATE_EXHAUST_STEPS  the length of the workloads with a crash or an error everywhere, 3 by default
#   FENCEGATE_SWEEP_EVERY    of the index engine's system calls one in so many is hit, 1 by default
set -eu
cd "$(dirname "$0")/.."

export FENCEGATE_EXHAUST_STEPS="${FENCEGATE_EXHAUST_STEPS:-3}"
export FENCEGATE_SWEEP_EVERY="${FENCEGATE_SWEEP_EVERY:-1}"
export FENCEGATE_KILLS="${FENCEGATE_KILLS:-1000}"
export FENCEGATE_SEED="${FENCEGATE_SEED:-$(date +%s)}"

cargo test --lib store::sim -- --nocapture
cargo test --test kills -- --nocapture
cargo test --features faults --test suite sweep:: -- --nocapture
