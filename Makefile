# Everything runs on loopback and cleans up after itself.

.PHONY: build test setup lint bench

build:
	cargo build --release

# Debian packages that tests of real servers need; needs root and does nothing when they are there.
setup:
	sh tests/setup.sh

# Many tests wait for a timer of the contract, so more of them run at once than there are cores.
test: setup
	RUST_TEST_THREADS=8 cargo test --workspace
	cargo test --features faults --test faults

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --workspace --all-targets --features faults -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# What a request costs next to nginx, HAProxy and a raw relay, and what bodies cost.
# BENCH="--rounds 9 --only nginx,fencegate" passes options on.
bench:
	cargo build --release --locked
	sh benches/setup.sh
	python3 benches/side_by_side.py $(BENCH)
	python3 benches/bodies.py $(BENCH)
