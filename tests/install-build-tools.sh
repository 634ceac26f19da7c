#!/bin/sh
# Installs what Unicorn's build and the tests need beside Rust, if it is missing: cmake, a C and C++
# compiler, libclang with its headers (for bindgen), patch. Uses the system's package manager and says so.
set -eu

missing=""
command -v cmake >/dev/null 2>&1 || missing="$missing cmake"
command -v cc >/dev/null 2>&1 || missing="$missing gcc"
command -v c++ >/dev/null 2>&1 || missing="$missing g++"
command -v make >/dev/null 2>&1 || missing="$missing make"
# The seeded faults are patches.
command -v patch >/dev/null 2>&1 || missing="$missing patch"

has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    for library in /usr/lib/llvm*/lib/libclang*.so* /usr/lib/*/libclang*.so* \
        /usr/lib64/libclang*.so* /usr/lib/libclang*.so*; do
        case "$library" in
        *libclang-cpp*) ;;
        *) [ -e "$library" ] && return 0 ;;
        esac
    done
    return 1
}
has_libclang || missing="$missing libclang-dev"
# libclang without its own headers cannot parse a single C file.
has_clang_headers() {
    for header in /usr/lib/llvm*/lib/clang/*/include/stddef.h /usr/lib*/clang/*/include/stddef.h; do
        [ -e "$header" ] && return 0
    done
    return 1
}
if [ -z "${LIBCLANG_PATH:-}" ] && ! has_clang_headers; then
    case "$missing" in *libclang-dev*) ;; *) missing="$missing libclang-dev" ;; esac
fi

[ -z "$missing" ] && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "please install:$missing (there is no apt-get here to do it with)" >&2
    exit 2
fi
as_root=""
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 || {
        echo "please install as root:$missing" >&2
        exit 2
    }
    as_root="sudo"
fi
echo "installing with apt-get:$missing"
$as_root apt-get update -qq
# shellcheck disable=SC2086 # the list is words
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
