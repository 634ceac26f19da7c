# `make help` lists what can be done. Everything builds in one profile, so that Unicorn, which takes
# two minutes, is compiled once.

CARGO ?= cargo
SECONDS_CAMPAIGN ?= 60
SEED ?= 1
OUT ?= campaign
PAGE ?= $(OUT)/report.html
SECONDS_MODEL ?= 600
RUNTIME ?= libfuzzer

# Bugs that `make test` seeds: in the translator, in memory, in regions, in the run loop.
SABOTAGE_QUICK = flags-lost-in-probe alias-not-watched adopts-other-bytes trap-lost-behind-an-assist

.PHONY: help deps build campaign report test check loom loom-deep sabotage sabotage-document fuzz-smoke test-cluster-build test-launcher corpus bench-record counts-record profile regions-record plots clean

help:
	@echo "make campaign    build, then compare the JIT and Unicorn with this processor for $(SECONDS_CAMPAIGN) s"
	@echo "make report      $(PAGE), a page about the campaign in $(OUT)"
	@echo "make test        all tests, and some deliberate bugs in the JIT, each of which a campaign must find"
	@echo "make check       formatting, lints, documentation"
	@echo "make loom        models of the code cache's protocols, and the faults seeded in them"
	@echo "make loom-deep   the models with no bound on preemptions, for $(SECONDS_MODEL) s each at most"
	@echo "make sabotage    all the deliberate bugs (ONLY=name for one)"
	@echo "make sabotage-document  docs/sabotage.md, of what it has found"
	@echo "make fuzz-smoke  each cargo-fuzz target for 20 s (needs a nightly toolchain; RUNTIME=libafl: under LibAFL's)"
	@echo "make test-cluster-build  the targets as ClusterFuzzLite and OSS-Fuzz build and run them, without a container"
	@echo "make test-launcher  two LibAFL brokers on loopback that pass inputs to each other (needs a nightly toolchain)"
	@echo "make corpus      corpora/fuzz of what the fuzz targets have found, merged and minimised"
	@echo "make bench-record  tregion bench in full, into benches/record (with qemu-x86_64 where it is installed)"
	@echo "make counts-record  how many instructions translation and the run loop take, which make test compares"
	@echo "make profile     what the instructions that the programs of corpora/programs come to on the JIT are for"
	@echo "make regions-record  what translation regions cost on this machine, into benches/record"
	@echo "make plots       draws that, for docs/decisions/0005-translation-regions.md"
	@echo "make deps        install what the build needs beside Rust: cmake, a C compiler, libclang"

deps:
	@sh tests/install-build-tools.sh

build: deps
	$(CARGO) build --release

campaign: build
	@status=0; ./target/release/tregion fuzz --engines silicon,jit,unicorn \
		--seconds $(SECONDS_CAMPAIGN) --seed $(SEED) --out $(OUT) || status=$$?; \
	if [ $$status -gt 1 ]; then exit $$status; fi

report: build
	./target/release/tregion report $(OUT) --out $(PAGE)

test: deps
	$(CARGO) test --release
	$(CARGO) run --quiet --locked --manifest-path sabotage/Cargo.toml -- $(SABOTAGE_QUICK)

check: deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --all-targets -- --deny warnings
	$(CARGO) clippy --release --all-targets --no-default-features -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --release --no-deps

loom: deps
	$(CARGO) run --quiet --locked --manifest-path loom/Cargo.toml

loom-deep: deps
	$(CARGO) run --quiet --locked --manifest-path loom/Cargo.toml -- --deep $(SECONDS_MODEL)

sabotage: deps
	$(CARGO) run --quiet --locked --manifest-path sabotage/Cargo.toml -- $(ONLY)

sabotage-document: deps
	$(CARGO) run --quiet --locked --manifest-path sabotage/Cargo.toml -- --document

fuzz-smoke: deps
	@RUNTIME=$(RUNTIME) sh tests/fuzz-smoke.sh

test-cluster-build: deps
	@sh tests/cluster-build.sh

test-launcher: deps
	cd fuzz/launcher && $(CARGO) +nightly test --release --locked --target x86_64-unknown-linux-gnu

corpus: deps
	@sh tests/fuzz-corpus.sh

bench-record: build
	./target/release/tregion bench --json benches/record/bench-$$(date -u +%F).json

counts-record: deps
	$(CARGO) test --release --test instruction_counts -- --record

profile: deps
	@$(CARGO) test --release --test instruction_counts -- --profile

regions-record: deps
	$(CARGO) bench --profile release --bench regions

plots: deps
	$(CARGO) run --quiet --release --example plots

clean:
	$(CARGO) clean
	rm -rf fuzz/target fuzz/libafl/target fuzz/launcher/target loom/target sabotage/target
