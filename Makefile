# Each target sets up what it needs: system packages (as root; else it prints the command), .venv and the project.
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

PYTEST_ARGS ?=
BENCH_ARGS ?=
MUTANTS_ARGS ?=
# Limit for the tests in the virtual machine. On an emulated processor each step takes ten times as long.
KERNEL_SECONDS ?= 900
# The newest wireguard-go, for tests against it and measurements next to it.
WIREGUARD_GO := v0.0.0-20260522210424-ecfc5a8d5446
SOURCES := pyproject.toml setup.py MANIFEST.in README.md requirements/dev.lock $(shell find rustguard_py cli embed quick enroll service rootless vpp daemon state native -type f ! -name '*.pyc' ! -path '*/target/*')
BIN := .venv/bin
export PATH := $(PATH):/usr/sbin:/sbin:/usr/local/go/bin
# Several workers, because most tests wait. PYTEST_ARGS='-n0 -s' runs one and shows what the tests print.
WORKERS = -n auto --dist loadgroup --no-loadscope-reorder
PYTEST = RUSTGUARD_INSTALLED=1 RUSTGUARD_SUDO="make $@" scripts/in-namespace $(BIN)/pytest

# The part of a target in Rust. Does nothing where the native plane wasn't built.
CARGO = scripts/native

help:
	@echo 'make demo      watch a server and a client on this machine find each other with a token and carry traffic (a minute)'
	@echo 'make test      run the tests; PYTEST_ARGS="-k replay" selects some'
	@echo 'make test-native   run the tests of devices, and the model of shared rings (minutes, to build them)'
	@echo 'make coverage  run the unit tests and print how much of the Python code they reach'
	@echo 'make mutants   change the code in small ways, and count the changes that the unit tests notice (an hour);'
	@echo '               MUTANTS_ARGS="--rooms state --seed 7" selects some'
	@echo 'make test-kernel   run the tests that need WireGuard in the kernel, in a virtual machine (minutes)'
	@echo 'make check     check formatting, lint and types'
	@echo 'make soak      run the tests with every repetition (long)'
	@echo 'make attack    attack the program for longer, and print what came of each attack next to its control (minutes)'
	@echo 'make fuzz      fuzz each parser of the native plane for FUZZ_SECONDS=60 (nightly Rust, cargo-fuzz)'
	@echo 'make miri      run tests of the native plane under Miri (nightly Rust)'
	@echo 'make tsan      run those with threads under ThreadSanitizer (nightly Rust)'
	@echo 'make bench     measure speed, side by side with wireguard-go; BENCH_ARGS="--help" lists the settings'
	@echo 'make bench-full     all engines; also without UDP segmentation, over IPv6 and with loss (half an hour)'
	@echo 'make bench-scale    measure what many peers cost (minutes)'
	@echo 'make bench-tunnels  compare one tunnel with two and four (minutes)'
	@echo 'make bench-rootless compare a join without root with one with root (a minute)'
	@echo 'make bench-generate compare devices and UDP sides with generated packets (14 minutes)'
	@echo 'make bench-latency  measure the round trip during TCP on a slow link (minutes)'
	@echo 'make bench-uplink  the same for several clients on one slow uplink of a server (minutes)'
	@echo 'make bench-scheduling  show what slow runs of one stream have in common (a minute)'
	@echo 'make bench-memif  compare a memif with a TUN; BENCH_ARGS=--publish writes the page (minutes)'
	@echo 'make wheel     build a wheel in dist/, for every Python from 3.11 and every Linux with a glibc as new as here'
	@echo 'make packages  build Debian packages and wheels for amd64 and arm64, and the source distribution, in dist/'
	@echo 'make test-packages  install the Debian package in fresh roots of Debian 12 and 13 and Ubuntu 24.04 and use it there (minutes)'
	@echo 'make sdist     build the source distribution in dist/'
	@echo 'make reference write docs/reference/commands.md from the text of the help'
	@echo 'make lock      pin the newest versions of the development tools in requirements/dev.lock'
	@echo 'make clean     remove .venv and everything that was built'

demo: .venv/.demo
	@RUSTGUARD_SUDO="make demo" scripts/in-namespace $(BIN)/rustguard demo

test: .venv/.test .venv/.rewritten
	@RUSTGUARD_FUZZ_SECONDS=$${RUSTGUARD_FUZZ_SECONDS:-1} $(CARGO) test --locked -q -p transport -p memif -p neighbours -p relay -p generator
	@$(PYTEST) $(WORKERS) --ignore=tests/packages $(PYTEST_ARGS)

# pytest rewrites the assertions of each file that is new, and keeps the result. Workers start together, so each of them
# would do it for all files, which takes longer than the rest of their start.
.venv/.rewritten: .venv/.test $(shell find tests -name '*.py')
	@PYTHONDONTWRITEBYTECODE= $(BIN)/pytest --collect-only -qq -p no:cacheprovider > /dev/null
	@touch $@

# Of the native crates, what takes long to build: devices against their contract, and the model of memif's rings.
test-native: .venv/.test
	@$(CARGO) test --locked -q -p plane
	@$(CARGO) test --locked -q --manifest-path model/Cargo.toml

# How much of the installed package the unit tests reach. There is no threshold. The name alone, without a path, would
# mean the checkout's folder, which no test imports.
coverage: .venv/.test
	@$(PYTEST) $(WORKERS) tests/unit --cov="$$(echo .venv/lib/python3*/site-packages/rustguard_py)" --cov-report=term:skip-covered $(PYTEST_ARGS)

# At a low priority, because it takes an hour of all processors. Which test reaches which line is kept in .venv.
mutants: .venv/.mutants
	@RUSTGUARD_INSTALLED=1 PYTHONPATH=tests PYTHONSAFEPATH=1 nice -n 19 $(BIN)/python -m mutants $(MUTANTS_ARGS)

# In a virtual machine with Debian's kernel, whatever kernel runs here. What the tests write stays in the machine.
test-kernel: .venv/.test-kernel
	@scripts/kernel-vm -t $(KERNEL_SECONDS) -- env RUSTGUARD_INSTALLED=1 RUSTGUARD_SOAK=$$RUSTGUARD_SOAK CI=$$CI OPENBLAS_NUM_THREADS=1 \
	  $(BIN)/pytest -p no:cacheprovider tests/kernel $(PYTEST_ARGS)

soak: .venv/.test
	@RUSTGUARD_SOAK=1 $(CARGO) test --locked --release -q -p transport --lib lanes
	@RUSTGUARD_SOAK=1 $(PYTEST) --ignore=tests/packages $(PYTEST_ARGS)
	@RUSTGUARD_SOAK=1 $(MAKE) test-packages

# The long forms, and a table of them.
attack: .venv/.test
	@RUSTGUARD_ATTACK=1 $(PYTEST) tests/attacks $(PYTEST_ARGS)

FUZZ_SECONDS ?= 60
fuzz:
	@scripts/fuzz $(FUZZ_SECONDS)

miri tsan:
	@scripts/sanitize $@

check: .venv/.check
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy -p rustguard_py
	@$(BIN)/mypy tests bench package examples
	@$(CARGO) fmt --check
	@$(CARGO) clippy --locked --all-targets -q -- -D warnings

bench: .venv/.bench
	@scripts/rust-peers
	@RUSTGUARD_SUDO="make bench" scripts/in-namespace $(BIN)/python bench/run.py $(BENCH_ARGS)

# The comparisons with other programs in docs/internals/performance.md.
bench-full: .venv/.bench
	@scripts/rust-peers
	@RUSTGUARD_SUDO="make bench-full" scripts/in-namespace $(BIN)/python bench/run.py --suite full --rounds 5 --seconds 1 $(BENCH_ARGS)

bench-scale: .venv/.bench
	@RUSTGUARD_SUDO="make bench-scale" scripts/in-namespace $(BIN)/python bench/scale.py $(BENCH_ARGS)

bench-generate: .venv/.bench
	@RUSTGUARD_SUDO="make bench-generate" scripts/in-namespace $(BIN)/rustguard bench generate --compare --output bench/results $(BENCH_ARGS)

bench-latency: .venv/.bench
	@RUSTGUARD_SUDO="make bench-latency" scripts/in-namespace $(BIN)/python bench/bufferbloat.py $(BENCH_ARGS)

bench-uplink: .venv/.bench
	@RUSTGUARD_SUDO="make bench-uplink" scripts/in-namespace $(BIN)/python bench/uplink.py $(BENCH_ARGS)

bench-memif: .venv/.bench
	@RUSTGUARD_SUDO="make bench-memif" scripts/in-namespace $(BIN)/python bench/memif.py --output bench/results $(BENCH_ARGS)

bench-scheduling: .venv/.bench
	@RUSTGUARD_SUDO="make bench-scheduling" scripts/in-namespace $(BIN)/python bench/scheduling.py $(BENCH_ARGS)

bench-tunnels: .venv/.bench
	@RUSTGUARD_SUDO="make bench-tunnels" scripts/in-namespace $(BIN)/python bench/tunnels.py $(BENCH_ARGS)

bench-rootless: .venv/.bench
	@RUSTGUARD_SUDO="make bench-rootless" scripts/in-namespace $(BIN)/python bench/rootless.py $(BENCH_ARGS)

wheel: .venv/.demo
	@CARGO_TARGET_DIR=.venv/cargo DIST_EXTRA_CONFIG=$$PWD/.venv/build.cfg $(BIN)/pip wheel -q --no-build-isolation --no-deps -w dist .
	@ls dist/*.whl

sdist: .venv/.dist
	@rm -f dist/*.tar.gz
	@DIST_EXTRA_CONFIG=$$PWD/.venv/build.cfg $(BIN)/python -m build --sdist --no-isolation > .venv/sdist.log 2>&1 || { cat .venv/sdist.log; exit 1; }
	@ls dist/*.tar.gz

packages: .venv/.packages
	@$(BIN)/python package/build.py

# A worker per file, because the tests of a file share machines. They use this machine's package alone, and in the long
# form arm64's too. The roots that they unpack are kept in .venv/roots.
test-packages: .venv/.packages .venv/.test
	@scripts/setup-debian $(if $(RUSTGUARD_SOAK),soak,test-packages)
	@$(BIN)/python package/build.py $(if $(RUSTGUARD_SOAK),,amd64)
	@$(PYTEST) -p no:cacheprovider -n 3 --dist loadfile --no-loadscope-reorder tests/packages $(PYTEST_ARGS)

reference: .venv/.demo
	@$(BIN)/python -P -m rustguard_py.cli.reference > .venv/commands.md
	@mv .venv/commands.md docs/reference/commands.md

lock:
	@scripts/lock

.venv/.demo: $(SOURCES) scripts/venv scripts/setup-debian
	@scripts/setup-debian demo
	@scripts/venv
	@touch $@

# mypy reads the tests and bench/, and so needs what they import.
.venv/.check: $(SOURCES) scripts/venv
	@scripts/venv check test bench mutants
	@touch $@

.venv/.mutants: $(SOURCES) scripts/venv scripts/setup-debian
	@scripts/setup-debian test
	@scripts/venv test mutants
	@touch $@

.venv/.dist: $(SOURCES) scripts/venv
	@scripts/venv dist
	@touch $@

.venv/.packages: $(SOURCES) scripts/venv $(wildcard package/* package/*/*)
	@scripts/venv dist packages
	@touch $@

.venv/.test .venv/.bench: .venv/.%: $(SOURCES) scripts/venv scripts/setup-debian scripts/testpmd
	@scripts/setup-debian $*
	@scripts/venv $*
	@scripts/testpmd
	@$(MAKE) wireguard-go wireguard-go-generate
	@touch $@

.venv/.test-kernel: $(SOURCES) scripts/venv scripts/setup-debian
	@scripts/setup-debian test-kernel
	@scripts/venv test
	@touch $@

# Without Go, the system's wireguard-go is used.
wireguard-go: .venv/wireguard-go-$(WIREGUARD_GO)
	@:
.venv/wireguard-go-$(WIREGUARD_GO):
	@if go version > /dev/null 2>&1; then \
	  echo 'Building wireguard-go $(WIREGUARD_GO)' && \
	  GOBIN="$$PWD/.venv/go" go install golang.zx2c4.com/wireguard@$(WIREGUARD_GO) && \
	  mv .venv/go/wireguard $(BIN)/wireguard-go && touch $@; \
	fi || command -v wireguard-go > /dev/null

# wireguard-go as the reference of `rustguard bench generate`. Without Go there is none.
wireguard-go-generate: .venv/bin/wireguard-go-generate
	@:
.venv/bin/wireguard-go-generate: $(wildcard bench/wireguard-go/*)
	@if go version > /dev/null 2>&1; then \
	  echo 'Building the reference of rustguard bench generate' && \
	  go build -C bench/wireguard-go -o "$$PWD/$@" .; \
	fi || echo 'It was not built: rustguard bench generate has no wireguard-go to compare with.'

clean:
	rm -rf .venv build dist *.egg-info .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: help demo test test-native coverage mutants test-kernel soak attack fuzz miri tsan check bench bench-full bench-scale bench-tunnels bench-rootless bench-generate bench-latency bench-uplink bench-scheduling bench-memif
.PHONY: wheel sdist packages test-packages reference lock wireguard-go wireguard-go-generate clean
