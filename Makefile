# Everything runs on loopback and cleans up after itself.

.PHONY: build test setup lint bench

build:
	cargo build --release

# Debian packages that tests of real servers need; needs root and does nothing when they are there.
setup:
	sh tests/setup.sh

test: setup
	cargo test --workspace
	cargo test --features faults --test faults

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --workspace --all-targets --features faults -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
