#!/bin/sh
# Builds the fuzz targets and runs each for FENCEGATE_FUZZ_SECONDS (12), as many at once as there
# are cores. A crash stops it, and its input and the command that repeats it are printed. The seed
# stays the same, so that a change is judged by what it changed; FENCEGATE_FUZZ_SEED=0 draws one.
#
#   tests/fuzz.sh                  all of them
#   tests/fuzz.sh key head         these
#   tests/fuzz.sh build            builds them alone
#   tests/fuzz.sh minimise         puts what was learnt into fuzz/corpus, as few inputs as will do
#   tests/fuzz.sh repeat TARGET FILE...
#
# No nightly compiler and no cargo-fuzz are needed: coverage is a pass of the stable compiler's, and
# libFuzzer comes with its crate. Without unsafe code of our own there is nothing for a sanitizer.
set -eu
cd "$(dirname "$0")/.."
targets="token key head config store lane"
seconds=${FENCEGATE_FUZZ_SECONDS:-12}
seed=${FENCEGATE_FUZZ_SEED:-1}
jobs=${FENCEGATE_FUZZ_JOBS:-$(nproc)}
built=target/fuzz
binaries=target/debug
found=$built/found
mkdir -p "$found"

build() {
    RUSTC_WRAPPER=$PWD/fuzz/rustc.sh cargo build --manifest-path fuzz/Cargo.toml --target-dir target
}

report() {
    awk -v target="$1" '
        / cov: / { for (i = 1; i < NF; i++) { if ($i == "cov:") cov = $(i + 1); if ($i == "ft:") ft = $(i + 1) } }
        /stat::number_of_executed_units/ { runs = $2 }
        END { printf "%-8s %10d runs  %6d edges  %6d features\n", target, runs, cov, ft }' "$built/$1.log"
}

case ${1:-} in
build)
    build
    exit
    ;;
minimise)
    build
    for target in $targets; do
        mkdir -p "$found/$target"
        rm -rf "$built/minimal" && mkdir -p "$built/minimal"
        "$binaries/$target" -set_cover_merge=1 -max_len=4096 "$built/minimal" "fuzz/corpus/$target" "$found/$target" 2>/dev/null
        rm -rf "fuzz/corpus/$target" && mv "$built/minimal" "fuzz/corpus/$target"
        echo "$target: $(find "fuzz/corpus/$target" -type f | wc -l) inputs, $(du -sk --apparent-size "fuzz/corpus/$target" | cut -f1) KiB"
    done
    exit
    ;;
repeat)
    build
    target=$2
    shift 2
    exec "$binaries/$target" "$@"
    ;;
esac

[ $# -eq 0 ] || targets=$*
build
# New inputs come from those that are committed and those of earlier runs on this machine.
rm -f "$built/failed"
status=0
export seconds seed built binaries found
for target in $targets; do echo "$target"; done | xargs -P "$jobs" -I{} sh -c '
    mkdir -p "$found/{}" "$built/crashes"
    "$binaries/{}" -max_total_time="$seconds" -seed="$seed" -timeout=10 -rss_limit_mb=2048 -max_len=4096 \
        -use_value_profile=1 -print_final_stats=1 -artifact_prefix="$built/crashes/{}-" \
        "$found/{}" "fuzz/corpus/{}" >"$built/{}.log" 2>&1 || { echo "{}" >>"$built/failed"; exit 1; }' || status=1
for target in $targets; do
    report "$target"
done
if [ $status -ne 0 ]; then
    for target in $(sort -u "$built/failed"); do
        tail -n 60 "$built/$target.log"
        crash=$(sed -n 's/.*Test unit written to //p' "$built/$target.log" | tail -n 1)
        echo "$target fails; to repeat it: tests/fuzz.sh repeat $target $crash"
    done
    exit 1
fi
