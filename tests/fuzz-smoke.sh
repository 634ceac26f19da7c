#!/bin/sh
# Runs each cargo-fuzz target, or FUZZ_TARGETS, for a while from its seeds: FUZZ_SECONDS each, 20 if not given.
set -eu
cd "$(dirname "$0")/.."
. tests/fuzz-tools.sh

seconds="${FUZZ_SECONDS:-20}"
# shellcheck disable=SC2086
cargo +nightly fuzz build $build
for target in ${FUZZ_TARGETS:-$targets}; do
    echo "fuzzing $target for $seconds s under $RUNTIME"
    fuzz_for "$seconds" "$target" "fuzz/corpus/$target"
done
