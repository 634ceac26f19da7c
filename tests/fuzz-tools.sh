# What scripts that run cargo-fuzz begin with; sourced from the root of the project.
# FUZZ_BUILD: further options of the build, such as --no-default-features, which leaves Unicorn out.

if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "$0: SKIPPED, cargo-fuzz needs a nightly toolchain: rustup toolchain install nightly"
    [ -n "${FUZZ_REQUIRED:-}" ] && exit 1
    exit 0
fi
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
command -v cargo-fuzz >/dev/null 2>&1 || {
    echo "installing cargo-fuzz from crates.io"
    cargo install --quiet --locked cargo-fuzz
}
targets="case_text differential smc_remap raw_bytes mapping concurrent"
build="--release ${FUZZ_BUILD:-}"

# Runs a target on its corpora: the target, a folder for what is found, options of libFuzzer. Inputs have so
# many features here that to weigh them (entropic) takes longer than to run them, and what engines keep from
# case to case looks like leaks.
fuzz() {
    target="$1" found="$2"
    shift 2
    mkdir -p "$found" "fuzz/corpus/$target" "corpora/fuzz/$target"
    dictionary="corpora/fuzz/$target.dict"
    [ -f "$dictionary" ] && set -- "$@" -dict="$dictionary"
    # shellcheck disable=SC2086
    cargo +nightly fuzz run $build "$target" "$found" "fuzz/corpus/$target" "corpora/fuzz/$target" -- \
        -timeout=30 -rss_limit_mb=4096 -entropic=0 -detect_leaks=0 "$@"
}
