#!/usr/bin/env bash
# demo.sh: two virtual machines, one disk between them, a receipt by its path. One command, no questions.
#
# Usage: qemu-configs/demo.sh [--receipts N] [--port N] [--accel auto|kvm|tcg] [--keep] [--exit]
#
#   --receipts N   how many receipts are issued (default 100)
#   --port N       port of 127.0.0.1 for the page of the front guest (default: the first free one from 8080)
#   --accel KIND   see run-guest.sh (default auto)
#   --keep         keep the disk image and the logs, and say where they are
#   --exit         end when all is shown, without waiting for somebody to look at the page; the default where standard
#                  output is no terminal
#
# Installs what is missing with apt-get, builds, draws N receipts, boots the issuer and the front guest, stores the receipts
# in the one, sends only their paths to the other over the network, reads them there by path and compares every byte. The
# pictures that the front guest read are left in build/demo/received. Then both gateways start: the receipts get their numbers
# over HTTP, and a page on this host finds them by number or date in the front guest. Exit status 0 means: all N identical, at
# most 100 bytes of payload a receipt on the network, and the page's image is the one that was issued. Ctrl-C at any moment
# stops and removes everything.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

receipts=100 accel=${RECEIPTDISK_ACCEL:-auto} keep='' exit_at_end='' page_port=''
demo_dir=$build_dir/demo
run_dir=''
port=9000
declare -A pid_of=() input_of=()
command_number=0

parse_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h) print_header_comment "$0"; exit 0 ;;
            --keep) keep=yes; shift; continue ;;
            --exit) exit_at_end=yes; shift; continue ;;
            --receipts | --accel | --port) [ $# -ge 2 ] || usage_error "$1 needs a value" ;;
            *) usage_error "unknown option $1" ;;
        esac
        case $1 in
            --receipts) receipts=$2 ;;
            --accel) accel=$2 ;;
            --port) page_port=$2 ;;
        esac
        shift 2
    done
    [[ $receipts =~ ^[1-9][0-9]{0,3}$ ]] || usage_error "--receipts wants a number from 1 to 9999, not $receipts"
    [[ -z $page_port || $page_port =~ ^[1-9][0-9]{0,4}$ ]] || usage_error "--port wants a port number, not $page_port"
    [ -t 1 ] || exit_at_end=yes
    case $accel in auto | kvm | tcg) ;; *) usage_error "--accel is auto, kvm or tcg, not $accel" ;; esac
}

# ---- processes: each is known by its id, and none outlives this script ----
# Each has a session of its own (setsid keeps the id), so that Ctrl-C reaches this script alone and the order of stopping is
# ours; if this script is killed outright, --pdeathsig and --die-with-parent end them.

stop() {
    local name=$1 pid=${pid_of[$1]-} tries
    [ -n "$pid" ] || return 0
    unset "pid_of[$name]"
    kill -TERM "$pid" 2>/dev/null || true
    for tries in {1..50}; do
        kill -0 "$pid" 2>/dev/null || break
        [ "$tries" != 50 ] || kill -KILL "$pid" 2>/dev/null || true
        sleep 0.1
    done
}

clean_up() {
    local status=$? name
    trap - EXIT
    trap '' INT TERM HUP
    # The guests first: they go on only as long as the backend is there.
    for name in issuer front backend; do stop "$name"; done
    if [ -n "$run_dir" ] && [ -n "$keep" ]; then
        say "kept: $demo_dir/receipts.img and the logs in $run_dir"
    else
        rm -rf "$run_dir" "$demo_dir"/{receipts.img,receipts.img.receiptdisk,in.raw,out.raw}
    fi
    exit "$status"
}

# started NAME: remembers the process just started. Disowned, because bash's own report of a killed job only confuses.
started() {
    pid_of[$1]=$!
    disown "$!"
}

# fail NAME MESSAGE: with the end of what NAME, or the process that died, said: there stands the reason.
fail() {
    local name=${dead:-$1} log
    shift
    for log in "$run_dir/$name.err" "$run_dir/$name.log"; do
        [ ! -s "$log" ] || { say "--- end of $name's ${log##*.}:"; tail -n 15 "$log" >&2; }
    done
    say "demo.sh: ${dead:+$dead ended before its time; }$*"
    exit 1
}

dead=''
all_alive() {
    local name
    for name in "${!pid_of[@]}"; do
        kill -0 "${pid_of[$name]}" 2>/dev/null || { dead=$name; return 1; }
    done
}

# await SECONDS COMMAND...: until the command succeeds. Fails after the time, or at once if a process has died.
await() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        all_alive || return 1
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

# ---- what the demo is made of ----

phase() {
    say "[$((SECONDS))s] $*"
}

install_missing() {
    phase "looking for what is needed"
    [ "$(uname -m)" = x86_64 ] || die "this demo runs on x86-64 hosts"
    command -v cargo >/dev/null || die "cargo is missing; install Rust 1.88 or newer (https://rustup.rs), then start again"
    need gcc cc
    need libc6-dev /usr/lib/x86_64-linux-gnu/libc.a
    need qemu-system-x86 qemu-system-x86_64
    need fonts-noto-cjk /usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc
    need fonts-dejavu-core /usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf
}

build() {
    local target quiet=()
    phase "building in release mode (the first time takes minutes)"
    cd "$repo_dir"
    target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
    # Progress is worth showing where there is much to build.
    [ ! -x "$target/release/receiptdisk-backend" ] || quiet=(--quiet)
    cargo build "${quiet[@]}" --release -p receiptdisk-backend
    cargo build "${quiet[@]}" --release -p receipt --features render --bin receipt-render
    # Static, because the guest has no libraries. With --target the flag does not reach build scripts and macros.
    RUSTFLAGS="-C target-feature=+crt-static" \
        cargo build "${quiet[@]}" --release --target x86_64-unknown-linux-gnu -p receipt --bin receipt
    RUSTFLAGS="-C target-feature=+crt-static" cargo build "${quiet[@]}" --release --target x86_64-unknown-linux-gnu \
        -p receipt --features gateway --bin receipt-gateway
    backend_program=$target/release/receiptdisk-backend
    render_program=$target/release/receipt-render
    receipt_program=$target/x86_64-unknown-linux-gnu/release/receipt
    gateway_program=$target/x86_64-unknown-linux-gnu/release/receipt-gateway
    kernel_dir=$("$configs_dir/get-kernel.sh")
    initramfs=$("$configs_dir/make-initramfs.sh" --receipt "$receipt_program" \
        --add "$gateway_program:/bin/receipt-gateway" --add "$configs_dir/guest-number:/bin/guest-number" \
        --add "$configs_dir/guest-issue:/bin/guest-issue" --add "$configs_dir/guest-show:/bin/guest-show")
}

# Two demos at once would overwrite each other's files.
take_lock() {
    mkdir -p "$build_dir"
    exec {lock}> "$build_dir/demo.lock"
    flock -n "$lock" || die "another demo is running in $build_dir; wait for it, or set RECEIPTDISK_BUILD_DIR"
}

# The pictures, and two private disks: a tar archive into the issuer guest, an empty place for one out of the front guest.
prepare() {
    phase "drawing $receipts receipts"
    rm -rf "$demo_dir"
    mkdir -p "$demo_dir/issued" "$demo_dir/received"
    "$render_program" --sample "$receipts" > "$demo_dir/receipts.csv"
    "$render_program" --csv "$demo_dir/receipts.csv" --out "$demo_dir/issued" > "$demo_dir/issued.paths"
    tar -C "$demo_dir/issued" -cf "$demo_dir/in.raw" .
    archive_mib=$(($(stat -c %s "$demo_dir/in.raw") / 1048576 + 1))
    truncate -s "${archive_mib}M" "$demo_dir/in.raw"
    truncate -s "$((archive_mib + 1))M" "$demo_dir/out.raw"
    picture_bytes=$(find "$demo_dir/issued" -name '*.png' -printf '%s\n' | awk '{sum += $1} END {printf "%.0f", sum}')
}

sockets_there() {
    [ -S "$run_dir/issuer.sock" ] && [ -S "$run_dir/front.sock" ]
}

start_backend() {
    local size_mib=$((archive_mib * 2 < 256 ? 256 : archive_mib * 2))
    phase "starting the backend: one image of $size_mib MiB, one writer, one reader"
    setsid setpriv --pdeathsig TERM "$backend_program" serve --image "$demo_dir/receipts.img" --create "${size_mib}M" \
        --guest "name=issuer,socket=$run_dir/issuer.sock,access=rw" \
        --guest "name=front,socket=$run_dir/front.sock,access=ro" \
        > "$run_dir/backend.log" 2> "$run_dir/backend.err" < /dev/null &
    started backend
    await 20 sockets_there || fail backend "the backend opened no sockets (limit 20 seconds)"
}

port_taken() {
    (: <> "/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

choose_port() {
    [ -z "$page_port" ] || return 0
    for page_port in {8080..8179}; do
        port_taken "$page_port" || return 0
    done
    die "no port of 127.0.0.1 from 8080 to 8179 is free; choose one with --port"
}

# start_guest NAME RAW-DISK [OPTION...]: its console is a pipe that we write to and a file that we read.
start_guest() {
    local name=$1 raw=$2 memory=$((256 + archive_mib * 3)) input
    shift 2
    rm -f "$run_dir/$name.in"
    mkfifo "$run_dir/$name.in"
    exec {input}<> "$run_dir/$name.in"
    input_of[$name]=$input
    setsid "$configs_dir/run-guest.sh" "$name" --run-dir "$run_dir" --accel "$guest_accel" --memory "${memory}M" --cpus 1 \
        --kernel "$kernel_dir/vmlinuz" --initrd "$initramfs" --append receiptdisk.console=script \
        --raw "$raw" --net pair "$@" --die-with-parent \
        < "$run_dir/$name.in" > "$run_dir/$name.log" 2> "$run_dir/$name.err" &
    started "$name"
}

guest_ready() {
    grep -q "^receiptdisk guest $1 ready" "$run_dir/$1.log"
}

boot_guests() {
    local name seconds=90
    guest_accel=$1
    start_guest issuer "$demo_dir/in.raw,receipts-in,ro"
    # Besides the cable to the issuer guest, a port of this host that leads to the page; no way out of the guest.
    start_guest front "$demo_dir/out.raw,receipts-out" --net user --forward "$page_port:8080"
    for name in issuer front; do
        await "$seconds" guest_ready "$name" || return 1
        sed -n '/accel=/p' "$run_dir/$name.err" >&2
    done
}

# A KVM that looks right and does not boot is the one fault with a second try.
boot() {
    phase "booting both guests side by side"
    if boot_guests "$accel"; then return 0; fi
    if [ "$accel" = auto ] && grep -q accel=kvm "$run_dir/issuer.err"; then
        say "no guest came up with KVM; trying again without"
        stop issuer
        stop front
        dead=''
        if boot_guests tcg; then return 0; fi
    fi
    guest_ready issuer || fail issuer "the issuer guest did not come up (limit 90 seconds)"
    fail front "the front guest did not come up (limit 90 seconds)"
}

# tell NAME COMMAND: types a command; its number and exit status come back as a line of their own.
tell() {
    command_number=$((command_number + 1))
    echo "$2; echo \"@@$command_number@\" \$?" >&"${input_of[$1]}"
}

answered() {
    grep -q "^@@$2@ " "$run_dir/$1.log"
}

failed() {
    grep -q "^@@$2@ [1-9]" "$run_dir/$1.log"
}

# finish NAME NUMBER SECONDS WHAT: waits for the answer to command NUMBER and fails unless it is 0.
finish() {
    local status
    await "$3" answered "$1" "$2" || fail "$1" "$4: no answer from the $1 guest (limit $3 seconds)"
    status=$(sed -n "s/^@@$2@ \([0-9]*\)$/\1/p" "$run_dir/$1.log")
    [ "$status" = 0 ] || fail "$1" "$4: exit status $status in the $1 guest"
}

run_in() {
    tell "$1" "$2"
    finish "$1" "$command_number" "$3" "$2"
}

result() {
    sed -n "s/^result $2=\([0-9]*\)$/\1/p" "$run_dir/$1.log" | tail -n 1
}

# True once the front guest has finished, or has nothing more to wait for; shows on the way how far it is.
shown_all() {
    local count
    count=$(grep -c '^[0-9/]*/[A-Za-z0-9_-]*\.png$' "$run_dir/front.log" || true)
    if [ -t 2 ]; then
        printf '\r      %s of %s receipts read in the front guest' "$count" "$receipts" >&2
    elif [ "$count" -ge $((shown_before + (receipts + 3) / 4)) ]; then
        shown_before=$count
        say "      $count of $receipts receipts read in the front guest"
    fi
    answered front "$front_command" || failed issuer "$issuer_command"
}

transfer() {
    local seconds=$((60 + receipts))
    run_in issuer "receipt format" 60
    phase "storing in the issuer guest, sending only the paths, reading in the front guest"
    shown_before=0
    tell front "guest-show $port"
    front_command=$command_number
    # The front guest listens before the issuer guest calls.
    await 20 grep -qx listening "$run_dir/front.log" || fail front "the front guest does not listen on port $port"
    tell issuer "guest-issue 192.168.77.2 $port"
    issuer_command=$command_number
    await "$seconds" shown_all || true
    [ ! -t 2 ] || echo >&2
    finish issuer "$issuer_command" 30 "storing the receipts"
    finish front "$front_command" 30 "reading the receipts"
}

# start_gateway NAME ARGUMENTS: waits until it listens; what it says is in the guest's log.
start_gateway() {
    run_in "$1" "receipt-gateway $2 --no-access-log > /tmp/gateway.out 2> /tmp/gateway.err < /dev/null &
        n=0; until [ -s /tmp/gateway.out ] || [ \$n -ge 200 ]; do n=\$((n + 1)); sleep 0.1; done
        cat /tmp/gateway.out /tmp/gateway.err; [ -s /tmp/gateway.out ]" 60
}

# Both gateways, the receipts' numbers (PUT /receipts/PATH?id=NUMBER with the same bytes stores nothing twice), and one image as
# a browser would ask for it.
gateways() {
    local number path asked
    phase "starting both gateways; the receipts get their numbers over HTTP"
    # Nobody but the two guests and this host can reach their addresses.
    start_gateway issuer "issuer --listen 0.0.0.0:8080"
    start_gateway front "front --listen 0.0.0.0:8080 --issuer http://192.168.77.1:8080"
    run_in issuer "guest-number /tmp/in /tmp/paths" $((60 + receipts))
    path=$(sed -n 1p "$demo_dir/issued.paths")
    number=$(basename "$path" .png)
    exec {asked}<> "/dev/tcp/127.0.0.1/$page_port" || fail front "the front end does not answer on port $page_port"
    printf 'GET /receipts?id=%s HTTP/1.0\r\n\r\n' "$number" >&"$asked"
    LC_ALL=C sed '1,/^\r$/d' <&"$asked" > "$demo_dir/page.png"
    exec {asked}<&-
    cmp -s "$demo_dir/page.png" "$demo_dir/issued/$path" ||
        fail front "http://127.0.0.1:$page_port/receipts?id=$number is not the receipt that was issued"
    say "      http://127.0.0.1:$page_port/receipts?id=$number is the receipt that was issued, to the byte"
}

# A person may look as long as it takes.
show_page() {
    [ -z "$exit_at_end" ] || return 0
    echo
    echo "The receipts in your browser:  http://127.0.0.1:$page_port/   (by number, such as $(basename "$(sed -n 1p "$demo_dir/issued.paths")" .png), or by the day 2026-11-23)"
    echo "Ctrl-C ends it."
    trap 'echo; exit 0' INT
    while all_alive; do sleep 1; done
    fail front "a part of the demo ended"
}

power_off() {
    local name
    for name in issuer front; do
        echo exit >&"${input_of[$name]}"
    done
    # A guest that does not go by itself is stopped; it has nothing left to do.
    for _ in {1..50}; do
        kill -0 "${pid_of[issuer]}" 2>/dev/null || kill -0 "${pid_of[front]}" 2>/dev/null || break
        sleep 0.1
    done
    for name in issuer front backend; do stop "$name"; done
}

# ---- the verdict ----

compare() {
    phase "comparing every byte"
    tar -C "$demo_dir/received" -xf "$demo_dir/out.raw"
    (cd "$demo_dir/issued" && find . -type f -print0 | sort -z | xargs -0 sha256sum) > "$demo_dir/issued.sha256"
    # sha256sum fails if one picture differs; the count says how many do not.
    (cd "$demo_dir/received" && LC_ALL=C sha256sum --check "$demo_dir/issued.sha256" 2>/dev/null) > "$demo_dir/verdicts" || true
    identical=$(grep -c ': OK$' "$demo_dir/verdicts" || true)
}

row() {
    printf '  %-46s %14s  %s\n' "$1" "$2" "${3-}"
}

per_receipt() {
    awk -v total="$1" -v count="$receipts" 'BEGIN {printf "%.1f a receipt", total / count}'
}

report() {
    local payload sent answered milliseconds base64
    payload=$(result issuer payload) sent=$(result issuer sent) answered=$(result front answered)
    milliseconds=$(result issuer milliseconds)
    base64=$((picture_bytes * 4 / 3))
    echo
    row "receipts issued" "$receipts"
    row "identical in the front guest (SHA-256)" "$identical"
    row "bytes of the pictures" "$picture_bytes" "$(per_receipt "$picture_bytes")"
    row "bytes by disk, written by the issuer guest" "$(result issuer written)"
    row "bytes by disk, read by the front guest" "$(result front read)"
    row "bytes by network, payload (the paths)" "$payload" "$(per_receipt "$payload")"
    row "bytes by network, on the wire, both ways" "$((sent + answered))" "$(per_receipt $((sent + answered)))"
    row "for comparison: the pictures in base64" "$base64" "$(per_receipt "$base64") (calculated)"
    row "milliseconds from first put to last get" "$milliseconds" "$(awk -v ms="$milliseconds" -v count="$receipts" 'BEGIN {printf "%.1f receipts a second", count * 1000 / ms}')"
    row "seconds for the whole demo" "$SECONDS"
    echo
    [ "$identical" = "$receipts" ] || die "only $identical of $receipts receipts are identical"
    [ "$payload" -le $((receipts * 100)) ] || die "$payload bytes of payload are more than 100 a receipt"
    echo "$identical of $receipts receipts identical. Look at them: $demo_dir/received"
}

main() {
    parse_arguments "$@"
    take_lock
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    install_missing
    build
    prepare
    run_dir=$(mktemp -d "${TMPDIR:-/tmp}/receiptdisk.XXXXXX")
    start_backend
    choose_port
    boot
    transfer
    compare
    gateways
    report
    show_page
    power_off
}

main "$@"
