# Each target does its own set-up: system packages (asked for, or installed as root), .venv, the project in it.
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

PYTEST_ARGS ?=
BENCH_ARGS ?=
# How long the tests in the virtual machine may take; without a processor's help each step takes ten times as long.
KERNEL_SECONDS ?= 900
# The newest wireguard-go, to talk to and to measure against.
WIREGUARD_GO := v0.0.0-20260522210424-ecfc5a8d5446
SOURCES := pyproject.toml setup.py README.md $(shell find rustguard_py cli quick enroll daemon state native -type f ! -name '*.pyc' ! -path '*/target/*')
BIN := .venv/bin
export PATH := $(PATH):/usr/sbin:/sbin:/usr/local/go/bin
# Several workers: most tests wait more than they compute. PYTEST_ARGS=-n0 has one, and shows what is printed with -s.
WORKERS = -n auto --dist loadgroup --no-loadscope-reorder
PYTEST = RUSTGUARD_INSTALLED=1 RUSTGUARD_SUDO="make $@" scripts/in-namespace $(BIN)/pytest

# Rust's part of a target, where the native plane was built.
CARGO = scripts/native

help:
	@echo 'make demo    two hosts on this machine find each other with a token and carry traffic (a minute)'
	@echo 'make test    the tests; PYTEST_ARGS="-k replay" chooses some'
	@echo 'make test-kernel   the tests that need WireGuard in the kernel, in a virtual machine that has it (minutes)'
	@echo 'make check   formatting, lint and types'
	@echo 'make soak    the tests with every repetition (long)'
	@echo 'make fuzz    the parsers of the native plane, a minute each; FUZZ_SECONDS=5 is shorter (nightly Rust, cargo-fuzz)'
	@echo 'make miri    its rules under Miri;  make tsan   its threads under ThreadSanitizer (nightly Rust)'
	@echo 'make bench   speed, side by side with wireguard-go; BENCH_ARGS="--help" says what can be set'
	@echo 'make bench-full   all engines; also without UDP segmentation, over IPv6 and with loss (half an hour)'
	@echo 'make bench-scale  what many peers cost (minutes)'
	@echo 'make bench-tunnels  one tunnel against two and four (minutes)'
	@echo 'make wheel   a wheel in dist/ for every Python from 3.11 and every Linux with a glibc as new as here'
	@echo 'make clean   removes .venv and what was built'

demo: .venv/.demo
	@RUSTGUARD_SUDO="make demo" scripts/in-namespace $(BIN)/rustguard demo

test: .venv/.test
	@$(CARGO) test --locked -q -p transport
	@$(PYTEST) $(WORKERS) $(PYTEST_ARGS)

# On any kernel: in a virtual machine with Debian's. What it writes stays in there.
test-kernel: .venv/.test-kernel
	@scripts/kernel-vm -t $(KERNEL_SECONDS) -- env RUSTGUARD_INSTALLED=1 RUSTGUARD_SOAK=$$RUSTGUARD_SOAK CI=$$CI OPENBLAS_NUM_THREADS=1 \
	  $(BIN)/pytest -p no:cacheprovider tests/kernel $(PYTEST_ARGS)

soak: .venv/.test
	@RUSTGUARD_SOAK=1 $(CARGO) test --locked --release -q -p transport --lib lanes
	@RUSTGUARD_SOAK=1 $(PYTEST) $(PYTEST_ARGS)

FUZZ_SECONDS ?= 60
fuzz:
	@scripts/fuzz $(FUZZ_SECONDS)

miri tsan:
	@scripts/sanitize $@

check: .venv/.check
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy -p rustguard_py
	@$(BIN)/mypy tests bench
	@$(CARGO) fmt --check
	@$(CARGO) clippy --locked --all-targets -q -- -D warnings

bench: .venv/.bench
	@scripts/rust-peers
	@RUSTGUARD_SUDO="make bench" scripts/in-namespace $(BIN)/python bench/run.py $(BENCH_ARGS)

# Everything that docs/performance.md says.
bench-full: .venv/.bench
	@scripts/rust-peers
	@RUSTGUARD_SUDO="make bench-full" scripts/in-namespace $(BIN)/python bench/run.py --suite full --rounds 5 --seconds 1 $(BENCH_ARGS)

bench-scale: .venv/.bench
	@RUSTGUARD_SUDO="make bench-scale" scripts/in-namespace $(BIN)/python bench/scale.py $(BENCH_ARGS)

bench-tunnels: .venv/.bench
	@RUSTGUARD_SUDO="make bench-tunnels" scripts/in-namespace $(BIN)/python bench/tunnels.py $(BENCH_ARGS)

wheel: .venv/.demo
	@CARGO_TARGET_DIR=.venv/cargo DIST_EXTRA_CONFIG=$$PWD/.venv/build.cfg $(BIN)/pip wheel -q --no-build-isolation --no-deps -w dist .
	@ls dist/*.whl

.venv/.demo: $(SOURCES) scripts/venv scripts/setup-debian
	@scripts/setup-debian demo
	@scripts/venv
	@touch $@

.venv/.check: $(SOURCES) scripts/venv
	@scripts/venv check test bench
	@touch $@

.venv/.test .venv/.bench: .venv/.%: $(SOURCES) scripts/venv scripts/setup-debian
	@scripts/setup-debian $*
	@scripts/venv $*
	@$(MAKE) wireguard-go
	@touch $@

.venv/.test-kernel: $(SOURCES) scripts/venv scripts/setup-debian
	@scripts/setup-debian test-kernel
	@scripts/venv test
	@touch $@

# Without Go the system's wireguard-go must do.
wireguard-go: .venv/wireguard-go-$(WIREGUARD_GO)
	@:
.venv/wireguard-go-$(WIREGUARD_GO):
	@if go version > /dev/null 2>&1; then \
	  echo 'Building wireguard-go $(WIREGUARD_GO)' && \
	  GOBIN="$$PWD/.venv/go" go install golang.zx2c4.com/wireguard@$(WIREGUARD_GO) && \
	  mv .venv/go/wireguard $(BIN)/wireguard-go && touch $@; \
	fi || command -v wireguard-go > /dev/null

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: help demo test test-kernel soak fuzz miri tsan check bench bench-full bench-scale bench-tunnels wheel wireguard-go clean
