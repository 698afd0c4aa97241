# Every target installs what it lacks from the distribution (deploy/setup) and can be run again at no cost.

export PATH := $(HOME)/.cargo/bin:$(PATH)
TARGET := $(or $(CARGO_TARGET_DIR),target)
CARGO_FLAGS := --locked
ENFORCE := ebpf/enforce/Cargo.toml
FUZZ := agent/fuzz/Cargo.toml

.PHONY: help demo run build release test test-unit test-local test-vm fuzz lint bench setup clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: build ## Run real programs as tasks, and show what the kernel held them to
	@deploy/vm/auto -t 600 -- $(TARGET)/debug/bulkhead-demo

run: build ## Start a master and an agent and leave them up until Ctrl-C
	@deploy/vm/auto -t 0 -p 5050 -p 5051 -p 31000 -- $(TARGET)/debug/bulkhead-demo up

build: setup ## Build everything, for tests and the demo
	cargo build --workspace --bins $(CARGO_FLAGS)

release: setup ## Build everything, optimised
	cargo build --workspace --bins --release $(CARGO_FLAGS)

test: setup ## Run every tier of tests
	@deploy/setup vm
	@deploy/test unit local vm

test-unit: setup ## Run the tests that need no privileges
	@deploy/test unit

test-local: setup ## Run the tests that need root and the running kernel
	@deploy/test local

test-vm: setup ## Run the tests on stock Debian kernels in virtual machines
	@deploy/setup vm
	@deploy/test vm

fuzz: setup ## Run each fuzz target for FUZZ_SECONDS (default 60)
	@agent/fuzz/run -t $(or $(FUZZ_SECONDS),60)

lint: setup ## Check formatting, and clippy with warnings denied
	@deploy/setup lint
	cargo fmt --all --check
	cargo fmt --manifest-path $(ENFORCE) --check
	cargo fmt --manifest-path $(FUZZ) --check
	cargo clippy --workspace --all-targets $(CARGO_FLAGS) -- -D warnings

bench: release ## Measure launch latency and the agent's own cost
	@deploy/vm/auto -t 0 -- $(TARGET)/release/bulkhead-bench all

setup: ## Install what building needs
	@deploy/setup build

clean: ## Remove what was built, the guests' kernels included
	cargo clean
	rm -rf build
