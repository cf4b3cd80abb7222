# shellcheck shell=bash
# Small functions that the scripts in this folder share. Sourced, never run.

# The repository, and the folder for everything these scripts produce. build/ is ignored by git.
configs_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo_dir=$(dirname "$configs_dir")
# shellcheck disable=SC2034
build_dir=${RECEIPTDISK_BUILD_DIR:-$repo_dir/build}

die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

usage_error() {
    echo "$(basename "$0"): $* (see --help)" >&2
    exit 2
}

# Progress goes to standard error: standard output belongs to results that another script reads.
say() {
    echo "$*" >&2
}

# Prints the comment block at the top of a script: the manual page of each script is its own header.
print_header_comment() {
    sed -n '2,/^[^#]/{/^#/!q;s/^# \{0,1\}//p}' "$1"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "need root for: $* (run it by hand, then start again)"
    fi
}

# apt-get with no questions. The package lists are fetched once a run, and only if something is missing.
apt_quiet() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" > /dev/null
}

apt_lists_fresh=
apt_update_once() {
    [ -z "$apt_lists_fresh" ] || return 0
    command -v apt-get >/dev/null || die "no apt-get here; install by hand: $*"
    say "fetching the package lists (apt-get update)"
    apt_quiet update || die "apt-get update failed; it needs root and the network"
    apt_lists_fresh=yes
}

# need PACKAGE FILE...: installs PACKAGE unless one of the FILEs is there. A name without a slash is a command.
need() {
    local package=$1 file
    shift
    for file in "$@"; do
        case $file in
            */*) [ ! -e "$file" ] || return 0 ;;
            *) ! command -v "$file" >/dev/null || return 0 ;;
        esac
    done
    apt_update_once "$package"
    say "installing $package"
    apt_quiet install -y --no-install-recommends "$package" || die "could not install $package; run: apt-get install $package"
}
