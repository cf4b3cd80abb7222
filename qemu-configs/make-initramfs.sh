#!/usr/bin/env bash
# make-initramfs.sh: builds the small guest that the demo and the tests boot: busybox, the virtio modules, `receipt`.
#
# Usage: make-initramfs.sh [--receipt FILE] [--add FILE:GUESTPATH]... [--module NAME]... [--out FILE]
#
#   --receipt FILE        a static `receipt` binary, installed as /bin/receipt (the same as --add FILE:/bin/receipt)
#   --add FILE:GUESTPATH  any other file; executable in the guest if it is here. Programs must be static.
#   --module NAME         a kernel module beside virtio_pci, virtio_blk, virtio_net (with all it depends on)
#   --out FILE            also copy the result to FILE
#
# Prints the path of the image, build/initramfs/HASH.gz. HASH covers everything that goes in, so a second call with the same
# input only prints, and the bytes are the same on every machine with the same kernel and busybox. Boot it with the kernel
# that get-kernel.sh prints; what the guest does is told by the kernel command line: see guest-init.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

added=() modules=(virtio_pci virtio_blk virtio_net) out=
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) print_header_comment "$0"; exit 0 ;;
        --receipt | --add | --module | --out) [ $# -ge 2 ] || usage_error "$1 needs a value" ;;&
        --receipt) added+=("$2:/bin/receipt"); shift 2 ;;
        --add) added+=("$2"); shift 2 ;;
        --module) modules+=("$2"); shift 2 ;;
        --out) out=$2; shift 2 ;;
        *) usage_error "unknown option $1" ;;
    esac
done
for pair in "${added[@]}"; do
    case $pair in *?:/?*) ;; *) usage_error "--add wants FILE:/GUESTPATH, not $pair" ;; esac
    [ -f "${pair%:*}" ] || die "no such file: ${pair%:*}"
done

# A busybox without shared libraries: the host's own, or one unpacked from the package, since busybox-static cannot be
# installed beside busybox.
find_busybox() {
    local fresh
    busybox=$(command -v busybox || true)
    if [ -n "$busybox" ] && ! ldd "$busybox" >/dev/null 2>&1; then return 0; fi
    busybox=$build_dir/busybox/bin/busybox
    [ ! -x "$busybox" ] || return 0
    apt_update_once busybox-static
    # Whole or not at all: another call may be about the same.
    mkdir -p "$build_dir"
    fresh=$(mktemp -d "$build_dir/busybox.XXXXXX")
    (cd "$fresh" && apt-get -qq download busybox-static >&2 && dpkg-deb -x ./*.deb . && rm ./*.deb) ||
        die "could not download busybox-static; check the network and the apt sources"
    [ -x "$fresh/bin/busybox" ] || mv "$fresh/usr/bin" "$fresh/bin"
    mv -T "$fresh" "$build_dir/busybox" 2>/dev/null || rm -rf "$fresh"
    [ -x "$busybox" ]
}

# The file of a module by its name (the kernel writes - and _ for the same thing), or nothing.
module_file() {
    local pattern=${1//[-_]/[-_]}
    find "$kernel_dir/modules/kernel" -name "$pattern.ko" -o -name "$pattern.ko.xz" -o -name "$pattern.ko.zst" | sed -n 1p
}

unpacked() {
    case $1 in
        *.xz) xz -dc "$1" ;;
        *.zst) need zstd zstd; zstd -qdc "$1" ;;
        *) cat "$1" ;;
    esac
}

# Each module after all it depends on. A distribution that builds it into the kernel has no file: nothing to load.
module_files=()
declare -A module_seen=()
add_module() {
    local name=${1//-/_} file dependency
    [ -z "${module_seen[$name]-}" ] || return 0
    module_seen[$name]=yes
    file=$(module_file "$name")
    if [ -z "$file" ]; then
        grep -qE "/${name//_/[-_]}\.ko$" "$kernel_dir/modules/modules.builtin" 2>/dev/null ||
            die "the kernel in $kernel_dir has no module $name"
        return 0
    fi
    for dependency in $(unpacked "$file" | tr '\0' '\n' | sed -n 's/^depends=//p' | tr , ' '); do
        add_module "$dependency"
    done
    module_files+=("$file")
}

all_inputs() {
    local pair
    printf '%s\n' "${BASH_SOURCE[0]}" "$configs_dir/guest-init" "$busybox" "${module_files[@]}"
    for pair in "${added[@]}"; do echo "${pair%:*}"; done
}

# Contents, guest paths and modes; not the paths of this machine.
content_hash() {
    local pair file number=0
    {
        all_inputs | while IFS= read -r file; do sha256sum < "$file"; done
        for file in "${module_files[@]}"; do basename "$file"; done
        for pair in "${added[@]}"; do
            number=0
            [ ! -x "${pair%:*}" ] || number=1
            echo "${pair##*:} $number"
        done
    } | sha256sum | cut -c 1-24
}

fill_root() {
    local root=$1 number=10 file pair target applet
    mkdir -p "$root"/{bin,dev,etc,lib/modules,proc,root,run,sys,tmp}
    install -m 755 "$busybox" "$root/bin/busybox"
    for applet in $("$busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
    done
    install -m 755 "$configs_dir/guest-init" "$root/init"
    echo 'root:x:0:0:root:/root:/bin/sh' > "$root/etc/passwd"
    for file in "${module_files[@]}"; do
        target=$(basename "$file")
        unpacked "$file" > "$root/lib/modules/$number-${target%%.ko*}.ko"
        number=$((number + 1))
    done
    for pair in "${added[@]}"; do
        target=$root${pair##*:}
        rm -f "$target"
        if [ -x "${pair%:*}" ]; then install -D -m 755 "${pair%:*}" "$target"; else install -D -m 644 "${pair%:*}" "$target"; fi
    done
}

# Same input, same bytes: one date, one owner, sorted names, new inode numbers, no name or time in the gzip header.
pack() {
    find "$1" -exec touch -h -d @0 {} +
    (
        cd "$1"
        find . -mindepth 1 | LC_ALL=C sort |
            "$busybox" cpio -o -H newc -R 0:0 --renumber-inodes --ignore-devno 2>/dev/null
    ) | gzip -n -9
}

find_busybox
kernel_dir=$("$configs_dir/get-kernel.sh")
for module in "${modules[@]}"; do add_module "$module"; done

cache_dir=$build_dir/initramfs
mkdir -p "$cache_dir"
image=$cache_dir/$(content_hash).gz
if [ ! -e "$image" ]; then
    work=$(mktemp -d "$cache_dir/work.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    fill_root "$work/root"
    pack "$work/root" > "$work/image.gz"
    mv "$work/image.gz" "$image"
    find "$cache_dir" -name '*.gz' -mtime +7 -delete
fi
touch "$image"
[ -z "$out" ] || cp "$image" "$out"
echo "$image"
