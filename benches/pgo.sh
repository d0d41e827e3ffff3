#!/bin/sh
# Builds fencegate twice: once so that it counts what its code does, under the load of benches/train.py, and once more
# with what was counted, so that the compiler knows which paths are taken. The result is what a release should ship.
#
# Needs rustup's llvm-tools (installed when they are missing) and what benches/setup.sh installs.
set -eu
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
work=$(pwd)/target/pgo
profdata=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
[ -x "$profdata" ] || rustup component add llvm-tools

# With a named target the flags do not reach build scripts and macros.
build() {
    RUSTFLAGS="${RUSTFLAGS:-} $1" cargo build --release --locked --bin fencegate --target "$host" --target-dir "$work/$2"
}

rm -rf "$work/counts"
build "-Cprofile-generate=$work/counts" counting
python3 benches/train.py --fencegate "$work/counting/$host/release/fencegate"
"$profdata" merge -o "$work/fencegate.profdata" "$work/counts"
build "-Cprofile-use=$work/fencegate.profdata" built
cp "$work/built/$host/release/fencegate" "$work/fencegate"
echo "pgo: $work/fencegate"
