#!/bin/sh
# Runs .clusterfuzzlite/build.sh without a container, and each target as ClusterFuzz's runner would: in the
# folder of what was built, with the runner's sanitizer options, the target's own behind them, its dictionary
# and its seeds from the archive.
set -eu
cd "$(dirname "$0")/.."
. tests/fuzz-tools.sh

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/src" "$scratch/out" "$scratch/work"
ln -s "$PWD" "$scratch/src/tregion"
RUSTUP_TOOLCHAIN=nightly SRC="$scratch/src" OUT="$scratch/out" WORK="$scratch/work" \
    SANITIZER=address FUZZING_ENGINE=libfuzzer bash .clusterfuzzlite/build.sh

# Those of the image that runs the targets.
runner="alloc_dealloc_mismatch=0:allocator_may_return_null=1:allocator_release_to_os_interval_ms=500"
runner="$runner:check_malloc_usable_size=0:detect_container_overflow=1:detect_odr_violation=0:detect_leaks=1"
runner="$runner:detect_stack_use_after_return=1:fast_unwind_on_fatal=0:handle_abort=1:handle_segv=1"
runner="$runner:handle_sigill=1:max_uar_stack_size_log=16:quarantine_size_mb=10:strict_memcmp=1"
runner="$runner:use_sigaltstack=1"
runner_arguments="-rss_limit_mb=2560 -timeout=25"

complain() {
    echo "$0: $1: $2" >&2
    [ ! -f "$scratch/log" ] || tail -n 40 "$scratch/log" >&2
    exit 1
}

# Whether the target's log has a line that matches.
says() {
    grep -Eq -- "$1" "$scratch/log"
}

for target in $targets; do
    dictionary="corpora/fuzz/$target.dict"
    cd "$scratch/out"
    rm -rf "$scratch/seeds" "$scratch/log"
    unzip -q "${target}_seed_corpus.zip" -d "$scratch/seeds" || complain "$target" "no archive of seeds"
    asan="$(options asan "" "$target.options" | tr ' ' ':')"
    set -- $runner_arguments $(options libfuzzer - "$target.options")
    [ -f "$target.dict" ] && set -- "$@" "-dict=$target.dict"
    ASAN_OPTIONS="$runner:$asan" "./$target" "$@" -seed=1337 -runs=300 "$scratch/seeds" \
        >"$scratch/log" 2>&1 || complain "$target" "fails as the runner starts it"
    cd - >/dev/null
    seeds="$(find "corpora/fuzz/$target" -type f | wc -l)"
    says "seed corpus: files: $seeds " || complain "$target" "does not read its $seeds seeds"
    says "Done [0-9]+ runs" || complain "$target" "does not end its runs"
    says "entropic power schedule" && complain "$target" "weighs inputs: its options are not used"
    # Those that tell the engine which events met which state of the code cache.
    if grep -q count "fuzz/fuzz_targets/$target.rs"; then
        says "Extra Counters" || complain "$target" "has no counters of its own"
    fi
    if [ -f "$dictionary" ]; then
        says "Dictionary: [1-9][0-9]* entries" || complain "$target" "does not read its dictionary"
    fi
    echo "$target: $seeds seeds, $(sed -n 's/.*DONE *\(cov: [0-9]* ft: [0-9]*\).*/\1/p' "$scratch/log")"
done
