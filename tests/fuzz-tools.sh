# What scripts that run cargo-fuzz begin with; sourced from the root of the project.
# FUZZ_BUILD: further options of the build, such as --no-default-features, which leaves Unicorn out.
# RUNTIME: what drives the targets, libfuzzer or libafl.

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

case "${RUNTIME:=libfuzzer}" in
libfuzzer) package=fuzz ;;
libafl)
    package=fuzz/libafl
    # Its build renames symbols with the tools of this component.
    [ -x "$(rustc +nightly --print target-libdir)/../bin/llvm-objcopy" ] ||
        rustup component add --toolchain nightly llvm-tools
    ;;
*)
    echo "$0: RUNTIME is libfuzzer or libafl, not $RUNTIME" >&2
    exit 2
    ;;
esac
build="--fuzz-dir $package --release ${FUZZ_BUILD:-}"

# The options of a section, each behind $2, of the file $3.
options() {
    sed -n "/^\[$1\]/,/^\[/s/^\([a-z_]*\) = /$2\1=/p" "$3" | tr '\n' ' '
}

# Runs a target on its corpora: the target, a folder for what is found, options of libFuzzer. In front of it
# stands $limit.
limit=""
fuzz() {
    target="$1" found="$2"
    shift 2
    mkdir -p "$found" "fuzz/corpus/$target" "corpora/fuzz/$target"
    dictionary="corpora/fuzz/$target.dict"
    [ -f "$dictionary" ] && set -- "$@" -dict="$dictionary"
    # shellcheck disable=SC2046,SC2086
    $limit cargo +nightly fuzz run $build "$target" "$found" "fuzz/corpus/$target" "corpora/fuzz/$target" -- \
        $(options libfuzzer - fuzz/libfuzzer.options) "$@"
}

# The same for so many seconds. LibAFL's runtime knows no such limit, ends by itself only if it has found
# something, and says a thousand times how far it is.
fuzz_for() {
    seconds="$1"
    shift
    if [ "$RUNTIME" = libfuzzer ]; then
        fuzz "$@" -max_total_time="$seconds" -print_final_stats=1
        return
    fi
    limit="timeout --signal=INT $seconds" log="$(mktemp)" status=0
    fuzz "$@" >"$log" 2>&1 || status=$?
    [ "$status" -eq 124 ] || sed -n '/panicked at/,$p' "$log" | head -n 200 >&2
    tail -n 2 "$log" && rm "$log"
    [ "$status" -eq 124 ]
}
