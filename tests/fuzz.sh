#!/usr/bin/env bash
# tests/fuzz.sh [SECONDS|--build [TARGET...]]: feeds invented bytes to everything that reads what others wrote (libFuzzer).
#
# Each target of every `fuzz` crate runs SECONDS (30 by default), two at a time (FUZZ_JOBS), and must neither panic, nor allocate more than
# 64 MiB at once, nor grow beyond 512 MiB, nor take 10 seconds over one input. One line a target says how many inputs it took; the exit
# status is 1 if one of them failed. The input that did it is kept in build/fuzz and belongs into the target's corpus once it is mended.
# With --build they are only compiled.
#
# Needs a C++ compiler (libFuzzer is compiled from its crate) and nothing else: the flags are those that `cargo fuzz run -s none` passes
# to the compiler, and the stable one takes them. `cargo fuzz` itself works as well.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# shellcheck source-path=SCRIPTDIR source=../qemu-configs/common.sh
. qemu-configs/common.sh

case ${1-} in -h | --help) print_header_comment "$0"; exit 0 ;; esac
seconds=${1:-30}
[ "$seconds" = --build ] && seconds=0
case $seconds in '' | *[!0-9]*) usage_error "SECONDS is a number, not '$seconds'" ;; esac
wanted=" ${*:2} "
crates=(backend/fuzz guest-driver/fuzz)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$repo_dir/target}/fuzz
triple=$(rustc -vV | sed -n 's/^host: //p')
results=$(mktemp -d "${TMPDIR:-/tmp}/receiptdisk-fuzz.XXXXXX")
trap 'rm -rf "$results"' EXIT
trap 'exit 130' INT TERM
mkdir -p "$build_dir/fuzz"

# With --target the flags do not reach build scripts and macros.
build() {
    local llvm=-Cllvm-args=-sanitizer-coverage
    RUSTFLAGS="--cfg fuzzing -Cdebug-assertions -Ccodegen-units=1 -Cpasses=sancov-module $llvm-level=4 $llvm-inline-8bit-counters \
        $llvm-pc-table $llvm-trace-compares $llvm-stack-depth -Cllvm-args=-simplifycfg-branch-fold-threshold=0" \
        cargo build --quiet --release --target "$triple" --manifest-path "$1/Cargo.toml" --bins
}

targets() {
    sed -n '/^\[\[bin\]\]/,/^$/s/^name = "\(.*\)"/\1/p' "$1/Cargo.toml"
}

# New inputs stay in the scratch folder; the corpus of the repository is only read.
run_target() {
    local crate=$1 target=$2 fresh=$results/$2 executions
    mkdir "$fresh"
    if "$CARGO_TARGET_DIR/$triple/release/$target" -max_total_time="$seconds" -rss_limit_mb=512 -timeout=10 -print_final_stats=1 \
        -artifact_prefix="$build_dir/fuzz/$target-" "$fresh" "$crate/corpus/$target" > "$results/$target.log" 2>&1; then
        executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$results/$target.log")
        echo "fuzz $target: ok, ${executions:-0} inputs"
        [ "${executions:-0}" -gt 0 ]
    else
        tail -n 40 "$results/$target.log"
        echo "fuzz $target: FAILED, the input is in $build_dir/fuzz"
        return 1
    fi
}

need g++ g++ || exit 1
pids=() failed=0
for crate in "${crates[@]}"; do
    build "$crate" || die "$crate does not build"
    [ "$seconds" -gt 0 ] || continue
    for target in $(targets "$crate"); do
        [ "$wanted" = "  " ] || [[ $wanted == *" $target "* ]] || continue
        while [ "$(jobs -rp | wc -l)" -ge "${FUZZ_JOBS:-2}" ]; do wait -n; done
        run_target "$crate" "$target" &
        pids+=($!)
    done
done
for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
[ "$seconds" = 0 ] || [ ${#pids[@]} -gt 0 ] || usage_error "no such target"
exit "$failed"
