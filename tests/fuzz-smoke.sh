#!/bin/sh
# Runs each cargo-fuzz target for a while from its seeds: FUZZ_SECONDS each, 20 if not given.
set -eu
cd "$(dirname "$0")/.."
. tests/fuzz-tools.sh

seconds="${FUZZ_SECONDS:-20}"
# shellcheck disable=SC2086
cargo +nightly fuzz build $build
for target in $targets; do
    echo "fuzzing $target for $seconds s"
    fuzz "$target" "fuzz/corpus/$target" -max_total_time="$seconds" -print_final_stats=1
done
