#!/bin/sh
# Stands between cargo and the compiler for tests/fuzz.sh: what fuzz/Cargo.toml has optimised is what is fuzzed, and counts
# its coverage. The rest does not: it is that of the gateway's tests.
set -eu
case " $* " in
*\ build_script_build\ *) ;;
*\ opt-level=1\ *)
    for option in level=4 inline-8bit-counters pc-table trace-compares; do
        set -- "$@" "-Cllvm-args=-sanitizer-coverage-$option"
    done
    set -- "$@" -Cpasses=sancov-module
    ;;
esac
exec "$@"
