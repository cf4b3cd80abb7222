#!/usr/bin/env bash
# get-kernel.sh: a small guest kernel, without installing one on this machine.
#
# Usage: get-kernel.sh [--help]
#
# Downloads the distribution's kernel package for virtual machines with apt-get, unpacks it under build/kernel/ and prints
# the folder. In it are `vmlinuz` and `modules/` (the tree that is /lib/modules/VERSION elsewhere). The second call only
# prints. Nothing on the host changes. Delete build/kernel/ to fetch a newer kernel.
#
# Environment: RECEIPTDISK_KERNEL_DIR=DIR uses a folder of that shape instead of downloading.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

kernel_dir=$build_dir/kernel/current

# The meta package names the newest kernel of the release: Debian's cloud kernel, Ubuntu's virtual one.
kernel_image_package() {
    local meta
    for meta in linux-image-cloud-amd64 linux-image-virtual linux-image-amd64; do
        { apt-cache depends "$meta" 2>/dev/null || true; } | sed -n 's/^ *|\{0,1\}Depends: \(linux-image-[0-9][^ ]*\)$/\1/p'
    done | sed -n 1p
}

download_and_unpack() {
    local image=$1 dir=$2 modules
    # Ubuntu keeps the modules in a package of their own; Debian's image package holds them.
    modules=${image/linux-image-/linux-modules-}
    (
        cd "$dir"
        apt-get -qq download "$image" >&2
        if apt-cache show "$modules" >/dev/null 2>&1; then apt-get -qq download "$modules" >&2; fi
        for deb in ./*.deb; do dpkg-deb -x "$deb" root; done
    ) || die "could not download $image; check the network and the apt sources"
    rm -f "$dir"/*.deb
    [ -d "$dir/root/lib/modules" ] || mv "$dir/root/usr/lib" "$dir/root/lib"
    mv "$dir"/root/boot/vmlinuz-* "$dir/vmlinuz"
    mv "$dir"/root/lib/modules/* "$dir/modules"
    basename "$image" > "$dir/package"
    rm -rf "$dir/root"
}

fetch_kernel() {
    local image fresh
    image=$(kernel_image_package)
    if [ -z "$image" ]; then
        apt_update_once "a kernel package"
        image=$(kernel_image_package)
    fi
    [ -n "$image" ] || die "no kernel package for virtual machines found; set RECEIPTDISK_KERNEL_DIR (see --help)"
    say "fetching the guest kernel: $image"
    mkdir -p "$build_dir/kernel"
    fresh=$(mktemp -d "$build_dir/kernel/fetch.XXXXXX")
    # shellcheck disable=SC2064 # the folder of now, not of later
    trap "rm -rf '$fresh'" EXIT
    # The lists can be older than the mirror: one retry with fresh ones.
    if ! (download_and_unpack "$image" "$fresh") 2>/dev/null; then
        rm -rf "$fresh"
        mkdir "$fresh"
        apt_update_once "$image"
        download_and_unpack "$(kernel_image_package)" "$fresh"
    fi
    chmod 755 "$fresh"
    # Two runs at once: the first one wins, the other throws its copy away.
    mv -T "$fresh" "$kernel_dir" 2>/dev/null || [ -e "$kernel_dir/vmlinuz" ]
}

case ${1-} in
    '') ;;
    *) print_header_comment "$0"; [ "$1" = --help ] && exit 0; exit 2 ;;
esac
if [ -n "${RECEIPTDISK_KERNEL_DIR-}" ]; then kernel_dir=$RECEIPTDISK_KERNEL_DIR; fi
if [ ! -e "$kernel_dir/vmlinuz" ]; then
    [ -z "${RECEIPTDISK_KERNEL_DIR-}" ] || die "no vmlinuz in $kernel_dir"
    fetch_kernel
fi
echo "$kernel_dir"
