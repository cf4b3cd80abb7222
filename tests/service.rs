//! The units of `qemu-configs/systemd`: as systemd reads them, and the backend as a service of a real systemd, in a guest of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use receiptdisk_tests::guest_root::{GuestRoot, with_libraries};
use receiptdisk_tests::{Guest, GuestImage, Scratch, Serve, Stand, backend_binary, repository};

const PROGRAM: &str = "/usr/local/bin/receiptdisk-backend";

fn units() -> PathBuf {
    repository().join("qemu-configs/systemd")
}

#[test]
fn systemd_accepts_the_units() {
    let scratch = Scratch::new();
    for unit in fs::read_dir(units()).unwrap() {
        let unit = unit.unwrap();
        // The programs need not be installed here: one that is stands for them.
        let text =
            fs::read_to_string(unit.path()).unwrap().replace("/usr/local/bin/receipt", "/bin/true -- ");
        fs::write(scratch.join(unit.file_name().to_str().unwrap()), text).unwrap();
    }
    let files = fs::read_dir(scratch.path()).unwrap().map(|file| file.unwrap().path());
    let output = Command::new("systemd-analyze").arg("verify").arg("--man=no").args(files).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("receipt")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}

/// From the initramfs into the root, where systemd is the first process.
const INIT: &str = r"#!/bin/sh
export PATH=/bin
mount -t devtmpfs dev /dev && mount -t proc proc /proc && mount -t sysfs sys /sys
for module in /lib/modules/*.ko; do insmod $module; done
disk=$(cd /sys/block; grep -l ^root vd*/serial | cut -d / -f 1)
mkdir /new && mount -t ext4 /dev/$disk /new
cp /bin/busybox /new/bin/ && for applet in $(busybox --list); do [ -e /new/bin/$applet ] || ln -s busybox /new/bin/$applet; done
chown -R 0:0 /new && chmod 1777 /new/tmp
mount --move /dev /new/dev && umount /proc /sys
exec switch_root /new /lib/systemd/systemd
";

/// What the harness expects of a guest: a line that it is ready, then a shell that reads commands.
const CONSOLE: &str = r#"[Unit]
DefaultDependencies=no
[Service]
Environment=PATH=/bin:/usr/bin
ExecStart=/bin/sh -c 'stty -echo -onlcr < /dev/ttyS0; exec > /dev/ttyS0 2>&1; echo "receiptdisk guest issuer ready"; exec sh /dev/ttyS0 < /dev/null'
StandardInput=null
StandardOutput=null
"#;

/// What every systemd starts with, and no more.
const DEFAULT_TARGET: &str = "[Unit]\nWants=console.service basic.target\nAfter=basic.target\n";

fn root(scratch: &Scratch) -> PathBuf {
    let backend = backend_binary();
    let systemd =
        ["/lib/systemd/systemd", "/lib/systemd/systemd-executor", "/usr/bin/systemctl"].map(Path::new);
    // The second came with systemd 255.
    let programs: Vec<&Path> = systemd.into_iter().filter(|file| file.exists()).chain([&*backend]).collect();
    let mut files = with_libraries(&programs);
    files.retain(|file| *file != backend);
    for unit in ["basic", "sysinit", "sockets", "shutdown", "multi-user"] {
        files.push(format!("/lib/systemd/system/{unit}.target").into());
    }
    let mut root = GuestRoot::of(scratch, &files);
    root.add(&backend, Path::new(PROGRAM));
    root.write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nreceiptdisk:x:900:900::/:/bin/false\n");
    root.write("/etc/group", "root:x:0:\nreceiptdisk:x:900:\nkvm:x:901:receiptdisk\n");
    root.write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n");
    root.write("/etc/os-release", "ID=receiptdisk-test\n");
    root.write("/etc/systemd/system/default.target", DEFAULT_TARGET);
    root.write("/etc/systemd/system/console.service", CONSOLE);
    for unit in ["receiptdisk-backend.service", "receiptdisk-issuer.socket", "receiptdisk-front.socket"] {
        let text = fs::read_to_string(units().join(unit)).unwrap();
        let text = text.replace("--create 16G", "--create 16M");
        root.write(&format!("/etc/systemd/system/{unit}"), &text);
    }
    root.pack()
}

/// systemd, with the backend as its service.
struct Host {
    guest: Guest,
}

impl Host {
    fn main_pid(&mut self) -> u32 {
        self.guest.ok("systemctl show -P MainPID receiptdisk-backend").trim().parse().unwrap()
    }

    fn state(&mut self) -> String {
        self.guest.run("systemctl is-active receiptdisk-backend").text.trim().to_owned()
    }

    /// The process that answers at the control socket.
    fn serving_pid(&mut self) -> u32 {
        let status = format!("{PROGRAM} ctl --control /run/receiptdisk/control.sock --json status");
        let status = self
            .guest
            .ok(&format!("{status} || {{ ls -la /run/receiptdisk; ps; dmesg | tail -n 40; false; }}"));
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        u32::try_from(status["pid"].as_u64().unwrap()).unwrap()
    }

    fn wait_until_serving(&mut self) {
        let status = format!("{PROGRAM} ctl --control /run/receiptdisk/control.sock status > /dev/null 2>&1");
        self.guest.ok(&format!(
            "until {status}; do systemctl -q is-failed receiptdisk-backend && break; sleep 0.1; done; {status} || {{ dmesg | tail -n 40; false; }}"
        ));
    }

    /// The process that systemd watches is the one that serves.
    #[track_caller]
    fn assert_serves(&mut self) -> u32 {
        let pid = self.main_pid();
        assert_eq!((self.state().as_str(), self.serving_pid()), ("active", pid));
        pid
    }
}

#[test]
fn service_is_reloaded_killed_and_stopped_by_systemd() {
    let scratch = Scratch::new();
    let init = scratch.join("sd-init");
    fs::write(&init, INIT).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&init, mode).unwrap();
    let add = format!("{}:/sd-init", init.display());
    let image = GuestImage::of(&["--module", "ext4", "--add", &add].map(String::from));
    let raw = format!("{},root", root(&scratch).display());
    // The disk that every guest of the harness has; nothing here uses it.
    scratch.image(Stand::SIZE);
    let _backend = Serve::image(&scratch.join("disk.img")).rw("issuer").start();
    let line = "rdinit=/sd-init loglevel=1 systemd.show_status=false systemd.log_target=kmsg systemd.default_standard_output=kmsg";
    let options = ["--memory", "256M", "--raw", &raw, "--append", line];
    let mut host = Host { guest: Guest::boot("issuer", scratch.path(), &image, &options).ready() };

    host.guest.ok("systemctl start receiptdisk-issuer.socket receiptdisk-front.socket receiptdisk-backend || { dmesg; false; }");
    host.wait_until_serving();
    let first = host.assert_serves();
    // A new version, twice; both times the service goes on as another process.
    host.guest.ok("systemctl reload receiptdisk-backend || { dmesg | tail -n 40; false; }");
    let second = host.assert_serves();
    host.guest.ok("systemctl reload receiptdisk-backend");
    let third = host.assert_serves();
    assert!(first != second && second != third, "{first} {second} {third}");
    // One that cannot take over: reload fails, and the service is as it was.
    host.guest.ok("cp -p /bin/busybox /tmp/new && mv /usr/local/bin/receiptdisk-backend /tmp/old && mv /tmp/new /usr/local/bin/receiptdisk-backend");
    assert_ne!(host.guest.run("systemctl reload receiptdisk-backend").code, 0);
    host.guest.ok("mv /tmp/old /usr/local/bin/receiptdisk-backend");
    assert_eq!(host.assert_serves(), third);
    // A kill of the process that took over is noticed as the service's end, and it is started again.
    host.guest.ok("kill -9 $(systemctl show -P MainPID receiptdisk-backend)");
    host.guest.ok(&format!(
        "until [ \"$(systemctl show -P MainPID receiptdisk-backend)\" != {third} ]; do sleep 0.1; done"
    ));
    host.wait_until_serving();
    host.assert_serves();
    assert_eq!(host.guest.ok("systemctl show -P NRestarts receiptdisk-backend").trim(), "1");
    host.guest.ok("systemctl stop receiptdisk-backend");
    assert_eq!(host.guest.ok("systemctl show -P Result,ExecMainStatus receiptdisk-backend"), "success\n0\n");
    host.guest.kill();
}
