#!/bin/bash
# Builds every fuzz target into $OUT as ClusterFuzzLite and OSS-Fuzz expect it: TARGET, TARGET_seed_corpus.zip,
# TARGET.options and, where corpora/fuzz has one, TARGET.dict. They set SRC, OUT, WORK, SANITIZER and
# FUZZING_ENGINE; tests/cluster-build.sh does so without a container.
set -euo pipefail
cd "$SRC/tregion"

if [ "$FUZZING_ENGINE" != libfuzzer ]; then
    echo "build.sh: the targets are built for libfuzzer, not for $FUZZING_ENGINE" >&2
    exit 2
fi
case "$SANITIZER" in
address | none) options=(--sanitizer "$SANITIZER") ;;
# The image's cargo turns a plain `cargo fuzz build` into one for coverage reports.
coverage) options=() ;;
*)
    echo "build.sh: SANITIZER is address, none or coverage, not $SANITIZER" >&2
    exit 2
    ;;
esac

# Without Unicorn: what differs in it ends no run, so nobody would hear of it.
cargo fuzz build --release --no-default-features "${options[@]}"

built="${CARGO_TARGET_DIR:-fuzz/target}/x86_64-unknown-linux-gnu/release"
for file in fuzz/fuzz_targets/*.rs; do
    target="$(basename "$file" .rs)"
    cp "$built/$target" "$OUT/$target"
    cp fuzz/libfuzzer.options "$OUT/$target.options"
    if [ -f "corpora/fuzz/$target.dict" ]; then
        cp "corpora/fuzz/$target.dict" "$OUT/$target.dict"
    fi
    # Anew, for zip would add to one that is there.
    rm -f "$OUT/${target}_seed_corpus.zip"
    zip --quiet --junk-paths --recurse-paths "$OUT/${target}_seed_corpus.zip" "corpora/fuzz/$target"
done
