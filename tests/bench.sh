#!/usr/bin/env bash
# tests/bench.sh: measures, and prints tables that docs/performance.md quotes. Figures are noisy: compare within one run.
#
#   tests/bench.sh order      what the order of requests costs: in the table itself, and per request with and without it
#   tests/bench.sh backend    this backend against qemu-storage-daemon and fio, or any vhost-user-blk socket; `backend --help` tells more
#   tests/bench.sh store      put and get of receipts of 100 KiB against fio with the same bytes (needs 4 GiB of disk)
#   tests/bench.sh life      gets and puts while expiry runs, against the same without (needs 1 GiB of disk)
#   tests/bench.sh method     the whole method between two QEMU guests against base64 over HTTP, raw HTTP, virtiofs and NFS; `method --help`
#   tests/bench.sh scale      get, and memory of writer and reader, from a thousand to a million receipts (needs 12 GiB of disk)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bench_order() {
    cargo bench --quiet -p receiptdisk-backend --bench order
    cargo build --quiet --release -p receiptdisk-backend
    cargo bench --quiet -p receiptdisk-tests --bench order
}

bench_store() {
    command -v fio >/dev/null || apt-get install -y --no-install-recommends fio >/dev/null
    cargo bench --quiet -p receipt --bench store
}

bench_life() {
    cargo bench --quiet -p receipt --bench life
}

bench_scale() {
    cargo bench --quiet -p receipt --bench scale
}

bench_backend() {
    local tool
    for tool in fio qemu-storage-daemon; do
        command -v "$tool" >/dev/null || apt-get install -y --no-install-recommends fio qemu-utils >/dev/null
    done
    cargo build --quiet --release -p receiptdisk-backend
    cargo bench --quiet -p receiptdisk-tests --bench backend -- "$@"
}

bench_method() {
    [ -e /usr/lib/qemu/virtiofsd ] || [ -e /usr/libexec/virtiofsd ] ||
        apt-get install -y --no-install-recommends virtiofsd >/dev/null 2>&1 ||
        apt-get install -y --no-install-recommends qemu-system-common >/dev/null
    cargo build --quiet --release -p receiptdisk-backend
    local static=(env "RUSTFLAGS=-C target-feature=+crt-static" cargo build --quiet --release --target x86_64-unknown-linux-gnu)
    "${static[@]}" -p receipt --bin receipt
    "${static[@]}" -p receipt --features mount,gateway --bin receipt-gateway
    "${static[@]}" -p receiptdisk-tests --example method-load
    cargo bench --quiet -p receiptdisk-tests --bench method -- "$@"
}

case ${1-} in
    method) shift; bench_method "$@" ;;
    backend) shift; bench_backend "$@" ;;
    order) bench_order ;;
    store) bench_store ;;
    scale) bench_scale ;;
    life) bench_life ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
