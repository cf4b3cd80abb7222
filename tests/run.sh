#!/usr/bin/env bash
# tests/run.sh: every test there is, with one command.
#
# Installs the packages that are missing (root or sudo), checks form (rustfmt, clippy, shellcheck), builds, runs the unit tests,
# the tests that drive the backend over vhost-user and the tests that boot QEMU guests. The last line is `N passed, N failed`;
# the exit status is 1 if anything failed, if nothing ran, or if a process or file of the tests is left behind.
#
# Cargo's own variables work (CARGO_TARGET_DIR, CARGO_NET_OFFLINE); the log of the tests stays in build/tests.log.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# shellcheck source-path=SCRIPTDIR source=../qemu-configs/common.sh
. qemu-configs/common.sh

# The tests that remove rules panic by the hundred: a trace each would take minutes.
export RUST_BACKTRACE=0

passed=0 failed=0
scratch=$(mktemp -d "${TMPDIR:-/tmp}/receiptdisk-run.XXXXXX")
chmod 711 "$scratch" # for the test that runs the backend as nobody
guest_build=''
trap clean_up EXIT
trap 'exit 130' INT TERM
mkdir -p "$build_dir"
log=$build_dir/tests.log

# Processes of the tests inherit a mark, so that what is left of them can be found whatever it is called.
marked_processes() {
    grep -lsz "^RECEIPTDISK_TEST_RUN=$scratch\$" /proc/[0-9]*/environ | cut -d / -f 3
}

clean_up() {
    local pid
    for pid in $(jobs -p); do kill "$pid" 2>/dev/null; done
    for pid in $(marked_processes); do kill -KILL "$pid" 2>/dev/null; done
    rm -rf "$scratch"
}

# One step counts as one test: passed, or failed with its output where it can be seen.
step() {
    local name=$1
    shift
    echo "== $name"
    if "$@"; then
        passed=$((passed + 1))
    else
        echo "== FAILED: $name"
        failed=$((failed + 1))
        return 1
    fi
}

packages() {
    (
        need gcc cc &&
            need libc6-dev /usr/lib/x86_64-linux-gnu/libc.a &&
            need qemu-system-x86 qemu-system-x86_64 &&
            need qemu-utils qemu-storage-daemon &&
            need fonts-noto-cjk /usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc &&
            need fonts-dejavu-core /usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf &&
            need e2fsprogs /sbin/mke2fs &&
            need btrfs-progs mkfs.btrfs &&
            need fio fio &&
            need systemd systemd-analyze &&
            need mount losetup &&
            need shellcheck shellcheck &&
            need strace strace
    )
}

# The same profile and features as the tests, so that nothing is compiled twice.
build_programs() {
    cargo build --workspace --all-features --bins
}

# Static, because the guest has no libraries. With --target the flag does not reach build scripts and macros. `receipt` alone has no
# features, so that its size is that of what users build.
build_guest_programs() {
    local static=(env "RUSTFLAGS=-C target-feature=+crt-static" cargo build --release --target x86_64-unknown-linux-gnu -p receipt)
    "${static[@]}" --bin receipt && "${static[@]}" --features mount,gateway --bin receipt-mount --bin receipt-gateway
}

# Linking them occupies one processor for minutes; the other one meanwhile compiles the rest.
start_guest_build() {
    build_guest_programs > "$scratch/guest-build.log" 2>&1 &
    guest_build=$!
}

end_guest_build() {
    local status=0
    wait "$guest_build" || status=1
    guest_build=''
    cat "$scratch/guest-build.log"
    return $status
}

compile_tests() {
    cargo test --workspace --all-features --no-run
}

shell_scripts() {
    git grep -lE '^#!/(usr/)?bin/(env )?(ba|da)?sh' -- .
}

check_scripts() {
    local scripts
    mapfile -t scripts < <(shell_scripts)
    [ ${#scripts[@]} -gt 0 ] && shellcheck -x "${scripts[@]}"
}

# Every program of tests that cargo has compiled, one a line: folder of its package, kind (lib, bin or test), name, path.
test_programs() {
    cargo test --workspace --all-features --no-run --message-format=json 2>/dev/null |
        sed -nE 's/.*"manifest_path":"([^"]*)\/Cargo.toml".*"kind":\["([^"]*)"\][^}]*"name":"([^"]*)".*"profile":\{[^}]*"test":true.*"executable":"([^"]*)".*/\1 \2 \3 \4/p'
}

# lane NICENESS PATTERN: runs the programs whose line matches, one after the other, as cargo would.
lane() {
    local folder kind name program status=0 count=0
    while read -r folder kind name program; do
        echo "     Running $kind $name"
        count=$((count + 1))
        (cd "$folder" && TMPDIR=$scratch/tmp RECEIPTDISK_TEST_RUN=$scratch \
            timeout --foreground --kill-after=30 1800 nice -n "$1" "$program" < /dev/null) || status=1
    done < <(grep -E -- "$2" "$scratch/programs")
    [ "$count" -gt 0 ] && return $status
} 2>&1

# Units only compute, and so step back; what is compiled for the steps after the tests comes here, while others still wait.
lane_of_units() {
    local status=0
    lane 10 " (lib|bin) " || status=1
    TMPDIR=$scratch/tmp nice -n 10 cargo test --workspace --all-features --doc 2>&1 || status=1
    nice -n 10 env "${shuttle[@]}" --no-run > "$scratch/shuttle-build.log" 2>&1
    [ -z "${CI-}" ] || nice -n 10 tests/fuzz.sh --build > "$scratch/fuzz-build.log" 2>&1
    return $status
}

# Sums the `test result:` lines. A test program that started and gave no such line has crashed.
count_tests() {
    local sums started ended
    sums=$(sed -nE 's/^test result: .* ([0-9]+) passed; ([0-9]+) failed;.*/\1 \2/p' "$log" |
        awk '{p += $1; f += $2} END {print p + 0, f + 0}')
    started=$(grep -cE '^ +(Running|Doc-tests) ' "$log")
    ended=$(grep -c '^test result: ' "$log")
    passed=$((passed + ${sums% *}))
    failed=$((failed + ${sums#* } + started - ended))
    [ "${sums% *}" -gt 0 ] || { echo "== FAILED: no test ran"; return 1; }
    # A program fails for each reason counted above; any other reason counts here.
    [ "$1" = 0 ] || [ $((${sums#* } + started - ended)) -gt 0 ]
}

# Three lanes, since most tests wait for a disk or a guest: those of the backend and of whole machines, those of the guest's
# programs, and the units.
all_tests() {
    local status=0 pid pids=()
    mkdir "$scratch/tmp"
    test_programs > "$scratch/programs"
    # In braces, so that the status is that of the lane.
    { lane 0 "^$PWD/tests test " | tee "$scratch/machines.log"; } & pids+=($!)
    { lane 5 "^$PWD/guest-driver test " | tee "$scratch/guests.log"; } & pids+=($!)
    { lane_of_units | tee "$scratch/units.log"; } & pids+=($!)
    for pid in "${pids[@]}"; do wait "$pid" || status=1; done
    cat "$scratch"/{machines,guests,units}.log > "$log"
    # None is forgotten: the tests of that folder are listed one by one.
    [ "$(grep -c "^$PWD/tests test " "$scratch/programs")" = "$(grep -c '^\[\[test\]\]' tests/Cargo.toml)" ] || status=1
    count_tests "$status"
}

# The code where threads meet, compiled with shuttle's locks in place of the system's.
shuttle=("RUSTFLAGS=--cfg shuttle" "CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/shuttle"
    cargo test -p receiptdisk-backend --lib gate)
thread_schedules() {
    env "${shuttle[@]}" 2>&1 | tee "$scratch/schedules.log"
    grep -q '^test result: ok. [1-9]' "$scratch/schedules.log"
}

# Each target counts as one test.
fuzz_targets() {
    local status failures
    echo "== fuzz targets"
    TMPDIR=$scratch tests/fuzz.sh 30 2>&1 | tee "$scratch/fuzz.log"
    status=$?
    failures=$(grep -c '^fuzz .*: FAILED' "$scratch/fuzz.log")
    passed=$((passed + $(grep -c '^fuzz .*: ok' "$scratch/fuzz.log")))
    failed=$((failed + failures))
    [ "$status" = 0 ] || [ "$failures" -gt 0 ] || failed=$((failed + 1))
}

nothing_left() {
    local files pid left=''
    files=$(find "$scratch/tmp" /dev/shm -mindepth 1 -maxdepth 1 \( -path "$scratch/*" -o -name "${scratch##*/}-*" \))
    for pid in $(marked_processes); do left+=" $pid ($(tr '\0' ' ' < "/proc/$pid/cmdline"))"; done
    [ -z "$files$left" ] && return
    echo "left behind: $files$left"
    # Its content tells whose it is.
    # shellcheck disable=SC2086 # one word a file
    [ -z "$files" ] || find $files -ls
    return 1
}

step "packages" packages
step "rustfmt" cargo fmt --all -- --check
step "shellcheck" check_scripts
start_guest_build
step "clippy" cargo clippy --workspace --all-targets --all-features -- -D warnings
if step "build" build_programs && step "compile the tests" compile_tests && step "build the guests' programs" end_guest_build; then
    step "tests" all_tests
    step "random thread schedules" thread_schedules
    [ -z "${CI-}" ] || fuzz_targets # three minutes
    step "nothing is left behind" nothing_left
fi

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
