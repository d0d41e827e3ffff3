# Everything runs on loopback and cleans up after itself.

.PHONY: build test planted sweep simulated modelled explored fuzzed setup lint model bench bench-requests bench-locks bench-store micro floods pgo faults fuzz shuttle smuggling malformed soak

build:
	cargo build --release

# Debian packages that tests of real servers need; needs root and does nothing when they are there.
setup:
	sh tests/setup.sh

# Many tests wait for a timer of the contract, so more of them run at once than there are cores. The
# instructions of single steps are counted in what they have built, and a change is told and never fails.
test: setup
	RUST_TEST_THREADS=6 cargo test --no-fail-fast
	-python3 benches/micro.py --build debug
	$(MAKE) --jobs=2 --output-sync malformed planted
	$(MAKE) sweep simulated faults modelled
	$(MAKE) --jobs=2 --output-sync explored fuzzed
	$(MAKE) shuttle fuzz

# What the tests with planted faults need; the compiler has time for it while clients are slow.
planted:
	cargo test --no-run --features faults,sim --lib --test suite --test simulation

# Kills and errors at every call of the store, one after the other.
sweep:
	cargo test --features faults,sim --test suite sweep:: -- --skip faults

# The whole gateway in simulated time, by seeds.
simulated:
	cargo test --features faults,sim --test simulation -- --skip faults

# Breaks each guarantee on purpose; prints which test notices, level by level.
faults:
	python3 tests/faults.py

# Every interleaving of the lanes and the protocol around them, and a counterexample for every
# planted fault. FENCEGATE_MODEL=soak takes more requests and an hour; =quick, seconds. What is explored is optimised and
# keeps its assertions; the rest is that of the other tests.
OPTIMISED = --config profile.dev.package.fencegate-filters.opt-level=3 --config profile.dev.package.stateright.opt-level=3
model: modelled
	$(MAKE) explored
modelled:
	cargo test --no-run --message-format=json-render-diagnostics $(OPTIMISED) --features faults --test model \
		| sed -n '/"kind":\["test"\]/s/.*"executable":"\([^"]*\)".*/\1/p' > target/model
# By itself, since cargo would wait for whatever else is being built.
explored:
	FENCEGATE_MODEL=$${FENCEGATE_MODEL:-ci} "$$(cat target/model)"

# The tests are the same with the features for tests and without. Examples are there each time, so that cargo has the same
# features of everything, and checks nothing twice.
lint:
	cargo fmt --all --check
	cargo clippy --all-targets --features faults,sim -- -D warnings
	cargo clippy --lib --bins --examples -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --lib --examples

# Malformed requests through the gateway to nginx, Apache, Node and h11; the same through nginx and
# HAProxy; slow clients. docs/SECURITY-TESTS.md says more, and what --write writes there. The seed stays
# the same, so that a change is judged by what it changed; a soak draws new ones. With the examples, cargo has the same
# features of everything as for the tests.
smuggling: setup
	cargo build --bins --examples
	$(MAKE) malformed

# The same with what is built; it leaves the compiler to others.
malformed:
	python3 tests/smuggling/rows.py
	FENCEGATE_BIN=target/debug/fencegate python3 tests/smuggling/differential.py --seed $${FENCEGATE_SEED:-1} --cases 1000 --seconds 120 --least 500 --toys
	FENCEGATE_BIN=target/debug/fencegate python3 tests/smuggling/side_by_side.py
	FENCEGATE_BIN=target/debug/fencegate python3 tests/smuggling/slow.py --seconds 2

# Longer than CI has time for; what was run is added up in docs/soak.txt.
# SOAK_SECONDS=3600, or SOAK_SEEDS=10000 for the simulation; SOAK_LEVELS=simulation for one level alone.
soak:
	python3 tests/soak.py

# What requests cost next to nginx, HAProxy, Envoy, Caddy and a raw relay; locks and durable advances next to etcd's and
# Redis's; and many keys in one store: tables, JSON and plots in docs/bench. It takes an hour. One target alone makes its part, and
# BENCH="--only nginx,fencegate" passes options on to the first, which says how long it takes. What is narrowed goes to target/bench.
# One part after the other, whatever make is told: they would measure each other.
bench:
	status=0; for part in requests locks store; do $(MAKE) --jobs=1 bench-$$part || status=$$?; done; exit $$status
bench-requests:
	cargo build --release --locked --bin fencegate
	sh benches/setup.sh
	python3 benches/bench.py $(BENCH)
bench-locks:
	cargo build --release --locked --bin fencegate --example lock_load
	sh benches/setup.sh
	python3 benches/locks.py --rounds 3 --seconds 2 --out docs/bench
bench-store:
	cargo build --release --locked --example store_bench --example advance_load --example keyspace
	sh benches/setup.sh
	python3 benches/syncs.py --out docs/bench
	python3 benches/advances.py --rounds 3 --seconds 3 --out docs/bench
	target/release/examples/keyspace --path /var/tmp --json docs/bench/keyspace.json
	target/release/examples/keyspace --path /var/tmp --keys 200000 --forget 5 --json docs/bench/forget.json

# Instructions of single steps, counted by valgrind in a release build; prints what changed by more than 5% since
# benches/micro.json. MICRO=--write makes what it counts the baseline.
micro:
	cargo build --release --locked --example micro
	python3 benches/micro.py $(MICRO)

# What floods over HTTP/2 cost another client of a release build, for two minutes: a measurement, which fails nothing. The gateway has
# a core of its own. FLOODED=target/pgo/fencegate takes another build.
FLOODED ?= target/release/fencegate
floods:
	[ -n "$(filter-out target/release/fencegate,$(FLOODED))" ] || cargo build --release --locked
	mkdir -p target/floods
	printf '#!/bin/sh\nexec taskset -c 0 %s "$$@"\n' "$(abspath $(FLOODED))" > target/floods/fencegate
	chmod +x target/floods/fencegate
	FENCEGATE_BIN=$(CURDIR)/target/floods/fencegate taskset -c 1 cargo test --test suite -- --ignored --nocapture what_a_flood

# A release that was built twice, the second time by what the first one counted under load:
# target/pgo/fencegate. Compare it by BENCH="--fencegate target/pgo/fencegate".
pgo:
	sh benches/setup.sh
	benches/pgo.sh

# The lane table and the store in the orders that a checker of threads makes up.
shuttle:
	tests/shuttle.sh

# Each fuzz target for FENCEGATE_FUZZ_SECONDS, 12 by default.
fuzz:
	tests/fuzz.sh

# What is fuzzed, which takes one compiler two minutes: the model has the other core.
fuzzed:
	tests/fuzz.sh build
