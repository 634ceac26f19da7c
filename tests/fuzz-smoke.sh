#!/bin/sh
# Runs each cargo-fuzz target for a while from its seeds: FUZZ_SECONDS each, 60 if not given.
set -eu
cd "$(dirname "$0")/.."

if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "fuzz-smoke: SKIPPED, cargo-fuzz needs a nightly toolchain: rustup toolchain install nightly"
    [ -n "${FUZZ_REQUIRED:-}" ] && exit 1
    exit 0
fi
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
command -v cargo-fuzz >/dev/null 2>&1 || {
    echo "installing cargo-fuzz from crates.io"
    cargo install --quiet --locked cargo-fuzz
}
seconds="${FUZZ_SECONDS:-60}"
cargo +nightly fuzz build --release
for target in case_text differential; do
    echo "fuzzing $target for $seconds s"
    mkdir -p "fuzz/corpus/$target"
    cargo +nightly fuzz run --release "$target" "fuzz/corpus/$target" "corpora/fuzz/$target" -- \
        -max_total_time="$seconds" -timeout=30 -rss_limit_mb=4096 -print_final_stats=1
done
