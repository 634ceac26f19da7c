#!/bin/sh
# Makes corpora/fuzz of what the targets have found: for each a few small inputs of those that together reach
# what all reach. FUZZ_SECONDS of fuzzing come before, none if not given.
set -eu
cd "$(dirname "$0")/.."
. tests/fuzz-tools.sh

if [ "$RUNTIME" != libfuzzer ]; then
    echo "$0: only libFuzzer can merge by what each input reaches (-set_cover_merge)" >&2
    exit 2
fi

# For each target, and bytes for each file.
most_files=30
most_bytes=2048

# Of the files of a folder, ordered by size, as many as there may be, evenly.
choose() {
    find "$1" -type f -size "-$((most_bytes + 1))c" -printf '%s %p\n' | sort -n | cut -d' ' -f2- | awk -v most="$most_files" '
        { file[NR] = $0 }
        END { step = NR > most ? NR / most : 1
              for (place = 1; int(place) <= NR && count++ < most; place += step) print file[int(place)] }'
}

# shellcheck disable=SC2086
cargo +nightly fuzz build $build
for target in $targets; do
    if [ -n "${FUZZ_SECONDS:-}" ]; then
        fuzz_for "$FUZZ_SECONDS" "$target" "fuzz/corpus/$target" -verbosity=0
    fi
    merged="$(mktemp -d)"
    fuzz "$target" "$merged" -set_cover_merge=1 -max_len="$most_bytes" -verbosity=0
    seeds="$(mktemp -d)"
    # What has a name was put there by hand.
    find "corpora/fuzz/$target" -name '*.case' -exec cp {} "$seeds" \;
    choose "$merged" | while read -r file; do cp "$file" "$seeds"; done
    rm -rf "corpora/fuzz/$target" "$merged"
    mv "$seeds" "corpora/fuzz/$target"
    chmod 755 "corpora/fuzz/$target"
    echo "$target: $(find "corpora/fuzz/$target" -type f | wc -l) inputs, $(du -sb "corpora/fuzz/$target" | cut -f1) bytes"
done
