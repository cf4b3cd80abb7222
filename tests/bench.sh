#!/usr/bin/env bash
# tests/bench.sh: measures, and prints tables that docs/performance.md quotes. Figures are noisy: compare within one run.
#
#   tests/bench.sh order      what the order of requests costs: in the table itself, and per request with and without it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bench_order() {
    cargo bench --quiet -p receiptdisk-backend --bench order
    cargo build --quiet --release -p receiptdisk-backend
    cargo bench --quiet -p receiptdisk-tests --bench order
}

case ${1-} in
    order) bench_order ;;
    *) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
