#!/usr/bin/env bash
# run-guest.sh: starts one virtual machine with the shared receipt disk attached.
#
# Usage: run-guest.sh NAME --disk your-vm.qcow2 [options] [-- more QEMU arguments]
#        run-guest.sh NAME --kernel FILE --initrd FILE [--append TEXT] [options] [-- more QEMU arguments]
#
# NAME is issuer, front or any other name; NAME.cfg (or --config) says what the machine looks like and is worth reading.
# The script ends by becoming QEMU, so its process id is QEMU's. Run it as a user who may open the backend's sockets.
#
#   --disk FILE[,FORMAT]    the machine's own disk, booted from; FORMAT qcow2, raw, ... (default: by the file's name)
#   --raw FILE,SERIAL[,ro]  one more private raw disk, found in the guest by its serial (repeatable)
#   --kernel, --initrd, --append   boot a kernel directly; the console is then ttyS0
#   --run-dir DIR           where the backend's sockets are                      (default /run/receiptdisk)
#   --socket FILE           the backend's socket for this guest                  (default DIR/NAME.sock)
#   --config FILE           the machine                                          (default NAME.cfg, else front.cfg, beside this script)
#   --accel auto|kvm|tcg    auto takes KVM only where it is real hardware        (default $RECEIPTDISK_ACCEL or auto)
#   --memory SIZE           such as 512M                                         (default as in the .cfg: 1G)
#   --cpus N                also the number of disk queues                       (default as in the .cfg: 2)
#   --net none|pair|user    network card, repeatable: eth0, eth1, ... in this order (default none)
#                             pair  a private cable to --peer (issuer and front know each other); start in any order;
#                                   direct boot gives issuer 192.168.77.1/24 and any other guest 192.168.77.2/24
#                             user  QEMU's own network; reachable only through --forward, and no way out
#   --peer NAME             the other end of the cable                           (default front for issuer, else issuer)
#   --address ADDR/LEN      this guest's address on the cable, for direct boot
#   --forward HOST:GUEST    with --net user: a TCP port of 127.0.0.1 on the host and its port in the guest (repeatable)
#   --serial stdio|none|file:FILE   the guest's ttyS0                            (default stdio)
#   --qmp SOCKET            QEMU's control socket                                (default none)
#   --die-with-parent       kill QEMU when the process that started it dies (a program's thread counts as the process)
#   --print                 print the machine and the QEMU line instead of starting it
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name='' disk='' config='' run_dir=/run/receiptdisk socket='' accel=${RECEIPTDISK_ACCEL:-auto} memory='' cpus=''
kernel='' initrd='' append='' peer='' address='' serial=stdio qmp='' die_with_parent='' print=''
raw_disks=() nets=() forwards=() extra=()

parse_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h) print_header_comment "$0"; exit 0 ;;
            --) shift; extra=("$@"); break ;;
            --die-with-parent) die_with_parent=yes; shift; continue ;;
            --print) print=yes; shift; continue ;;
            --*) [ $# -ge 2 ] || usage_error "$1 needs a value" ;;
            *) [ -z "$name" ] || usage_error "two names: $name and $1"; name=$1; shift; continue ;;
        esac
        case $1 in
            --disk) disk=$2 ;;
            --raw) raw_disks+=("$2") ;;
            --kernel) kernel=$2 ;;
            --initrd) initrd=$2 ;;
            --append) append=$2 ;;
            --run-dir) run_dir=$2 ;;
            --socket) socket=$2 ;;
            --config) config=$2 ;;
            --accel) accel=$2 ;;
            --memory) memory=$2 ;;
            --cpus) cpus=$2 ;;
            --net) nets+=("$2") ;;
            --peer) peer=$2 ;;
            --address) address=$2 ;;
            --forward) forwards+=("$2") ;;
            --serial) serial=$2 ;;
            --qmp) qmp=$2 ;;
            *) usage_error "unknown option $1" ;;
        esac
        shift 2
    done
}

check_arguments() {
    [[ $name =~ ^[A-Za-z0-9_-]{1,32}$ ]] || usage_error "a NAME of letters, digits, - and _ is needed"
    [ -n "$disk$kernel" ] || usage_error "--disk or --kernel is needed"
    [[ -z $memory || $memory =~ ^[0-9]+[MG]$ ]] || usage_error "--memory wants a number and M or G, not $memory"
    [[ -z $cpus || $cpus =~ ^[1-9][0-9]*$ ]] || usage_error "--cpus wants a number, not $cpus"
    run_dir=$(realpath -ms "$run_dir")
    : "${socket:=$run_dir/$name.sock}"
    # The socket's path is written into a quoted string of the .cfg, and into sun_path, which has 107 usable bytes.
    [[ $socket != *[\"\|\\\&,]* ]] || usage_error "the socket's path must not contain \" | \\ & or a comma: $socket"
    [ ${#socket} -le 107 ] || usage_error "the socket's path is longer than 107 bytes; use a shorter --run-dir: $socket"
    if [ -z "$config" ]; then
        config=$configs_dir/$name.cfg
        [ -e "$config" ] || config=$configs_dir/front.cfg
    fi
    [ -r "$config" ] || die "cannot read $config"
    : "${peer:=$([ "$name" = issuer ] && echo front || echo issuer)}"
}

# KVM only where the processor itself offers it. A /dev/kvm without svm or vmx in /proc/cpuinfo is emulated: it passes
# simple checks and then needs minutes for a boot, so opening it is not enough to trust it.
kvm_verdict() {
    [ -e /dev/kvm ] || { echo "there is no /dev/kvm"; return 1; }
    grep -qwE 'svm|vmx' /proc/cpuinfo || { echo "/proc/cpuinfo shows neither svm nor vmx"; return 1; }
    (: <> /dev/kvm) 2>/dev/null || { echo "/dev/kvm does not open for $(id -un); try: adduser $(id -un) kvm"; return 1; }
    echo "svm or vmx is there and /dev/kvm opens"
}

choose_accel() {
    local verdict
    case $accel in
        kvm | tcg) say "$name: accel=$accel, as told" ;;
        auto)
            if verdict=$(kvm_verdict); then accel=kvm; else accel=tcg; fi
            say "$name: accel=$accel, because $verdict"
            ;;
        *) usage_error "--accel is auto, kvm or tcg, not $accel" ;;
    esac
}

# The .cfg with this run's socket and sizes in it. -readconfig knows no variables.
machine() {
    sed -E -e "s|^( *path = )\".*\"|\1\"$socket\"|" \
        ${memory:+-e "s|^( *size = )\".*\"|\1\"$memory\"|"} \
        ${cpus:+-e "s/^( *(cpus|num-queues) = )\".*\"/\1\"$cpus\"/"} "$config"
}

# Commas separate QEMU's options; a comma in a file name is written twice.
escaped() {
    printf '%s' "${1//,/,,}"
}

qemu=()
add_base() {
    qemu=(qemu-system-x86_64 -no-user-config -nodefaults -display none -name "$name" -accel "$accel")
    if [ "$accel" = kvm ]; then qemu+=(-cpu host); else qemu+=(-cpu max); fi
    [ -z "$qmp" ] || qemu+=(-qmp "unix:$(escaped "$qmp"),server=on,wait=off")
    case $serial in
        stdio | none) qemu+=(-serial "$serial") ;;
        file:*) qemu+=(-serial "file:$(escaped "${serial#file:}")") ;;
        *) usage_error "--serial is stdio, none or file:FILE, not $serial" ;;
    esac
}

add_disks() {
    local file format flags count=0 entry
    if [ -n "$disk" ]; then
        file=$disk format=raw
        if [[ $disk =~ ^(.*),(raw|qcow2?|qed|vdi|vmdk|vhdx|vpc)$ ]]; then
            file=${BASH_REMATCH[1]} format=${BASH_REMATCH[2]}
        elif [[ $disk == *.qcow2 ]]; then
            format=qcow2
        fi
        [ -r "$file" ] || die "cannot read the disk $file"
        qemu+=(-drive "if=none,id=system,format=$format,file=$(escaped "$file")")
        qemu+=(-device "virtio-blk-pci,drive=system,bootindex=1")
    fi
    for entry in "${raw_disks[@]}"; do
        IFS=, read -r file serial_name flags <<< "$entry"
        [ -r "$file" ] || die "cannot read the disk $file"
        [ -n "$serial_name" ] || usage_error "--raw wants FILE,SERIAL[,ro], not $entry"
        qemu+=(-drive "if=none,id=raw$count,format=raw,file=$file$([ "$flags" != ro ] || echo ,readonly=on)"
            -device "virtio-blk-pci,drive=raw$count,serial=$serial_name")
        count=$((count + 1))
    done
}

# A local MAC address that is the same at every start of NAME: 52:54:00 and 3 bytes of a hash.
mac_address() {
    printf '%s' "$1" | sha256sum | sed -E 's/^(..)(..)(..).*/52:54:00:\1:\2:\3/'
}

addresses=''
add_networks() {
    local kind count=0 backend port
    for kind in "${nets[@]}"; do
        case $kind in
            none) continue ;;
            pair)
                # Datagrams between two unix sockets: no privilege, any start order, and one side may restart.
                backend="dgram,id=net$count,local.type=unix,local.path=$run_dir/net-$name.sock"
                backend+=",remote.type=unix,remote.path=$run_dir/net-$peer.sock"
                : "${address:=$([ "$name" = issuer ] && echo 192.168.77.1/24 || echo 192.168.77.2/24)}"
                addresses+=,eth$count=$address
                ;;
            user)
                backend="user,id=net$count,restrict=on"
                for port in "${forwards[@]}"; do backend+=",hostfwd=tcp:127.0.0.1:${port%:*}-:${port#*:}"; done
                addresses+=,eth$count=10.0.2.15/24
                ;;
            *) usage_error "--net is none, pair or user, not $kind" ;;
        esac
        qemu+=(-netdev "$backend" -device "virtio-net-pci,netdev=net$count,romfile=,mac=$(mac_address "$name-$count")")
        count=$((count + 1))
    done
}

# Last, because the kernel is told the addresses of the network cards.
add_kernel() {
    [ -n "$kernel" ] || return 0
    [ -r "$kernel" ] || die "cannot read the kernel $kernel"
    qemu+=(-no-reboot -kernel "$kernel")
    [ -z "$initrd" ] || qemu+=(-initrd "$initrd")
    # no_timer_check: an emulated timer on a busy host may be late, and Linux would take it for a broken one and panic.
    qemu+=(-append "console=ttyS0 panic=-1 quiet no_timer_check ipv6.disable=1 receiptdisk.name=$name receiptdisk.net=${addresses#,} $append")
}

start() {
    local command=("${qemu[@]}" "${extra[@]}")
    # Process substitution: the rendered machine never becomes a file that could go stale.
    [ -z "$die_with_parent" ] || command=(setpriv --pdeathsig KILL "${command[@]}")
    exec "${command[@]}" -readconfig <(machine)
}

parse_arguments "$@"
check_arguments
choose_accel
add_base
add_disks
add_networks
add_kernel
if [ -n "$print" ]; then
    machine | grep -vE '^ *(#|$)'
    printf '%q ' "${qemu[@]}" "${extra[@]}"
    echo "-readconfig THE-ABOVE"
    exit 0
fi
need qemu-system-x86 qemu-system-x86_64
start
