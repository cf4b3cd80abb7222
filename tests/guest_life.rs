//! What happens in the life of a QEMU guest: reboots, drivers that leave and come back, a file system of its own.

use std::fs;
use std::path::{Path, PathBuf};

use receiptdisk_tests::guest_root::{GuestRoot, with_libraries};
use receiptdisk_tests::raw::RawGuest;
use serde_json::json;

use receiptdisk_tests::{
    Backend, Ctl, Guest, GuestImage, Polite, Qmp, SECTOR, Scratch, Serve, Stand, exercise_binary,
    kexec_binary, until,
};

/// A backend and its QEMU guest, which ends first.
struct Machine {
    guest: Guest,
    /// The served disk, as the guest calls it.
    disk: String,
    backend: Backend,
    scratch: Scratch,
}

impl Machine {
    /// `made` and `options` are those of make-initramfs.sh and run-guest.sh.
    fn boot(made: &[String], options: &[&str]) -> Self {
        Self::boot_in(Scratch::new(), command, &image(made), options)
    }

    fn boot_in(scratch: Scratch, serve: fn(&Scratch) -> Serve, image: &GuestImage, options: &[&str]) -> Self {
        scratch.image(2 * Stand::SIZE);
        let backend = serve(&scratch).start();
        let qmp = scratch.join("qmp.sock");
        let options = [&["--memory", "192M", "--qmp", qmp.to_str().unwrap()], options].concat();
        let guest = Guest::boot("issuer", scratch.path(), image, &options).ready();
        let mut machine = Self { guest, disk: String::new(), backend, scratch };
        machine.disk = machine.device("receiptdisk");
        machine
    }

    /// The disk whose serial begins so.
    fn device(&mut self, serial: &str) -> String {
        let found = self.guest.ok(&format!("cd /sys/block; grep -l ^{serial} vd*/serial; cd /"));
        let name = found.split('/').next().unwrap();
        format!("/dev/{name}")
    }

    fn exercise(&mut self) {
        self.guest.ok(&format!("exercise {} 0 4194304 2 1 100 direct", self.disk));
    }

    fn descriptors(&mut self) -> usize {
        let mut last = 0;
        until("the number of descriptors to settle", || {
            let now = self.backend.proc().open_fds();
            (std::mem::replace(&mut last, now) == now).then_some(now)
        })
    }

    /// Kills the backend and starts it again, or replaces it.
    #[track_caller]
    fn disturb(&mut self, kill: bool) {
        if kill {
            self.backend.kill();
            self.backend = command(&self.scratch).start();
        } else {
            let fresh = command(&self.scratch).arg("--replace").spawn();
            assert_eq!(self.backend.proc().wait().code, Some(0), "{}", fresh.log());
            self.backend = fresh;
        }
    }
}

/// A guest's programs: `exercise` and what `made` adds, in the words of make-initramfs.sh.
fn image(made: &[String]) -> GuestImage {
    let exercise = format!("{}:/bin/exercise", exercise_binary().display());
    GuestImage::of(&[made, &["--add".into(), exercise]].concat())
}

fn command(scratch: &Scratch) -> Serve {
    Serve::image(&scratch.join("disk.img")).arg("--control").arg(scratch.join("ctl.sock")).rw("issuer")
}

#[test]
fn guest_reboots_and_its_driver_leaves_and_comes_back() {
    let mut machine = Machine::boot(&[], &["--", "-action", "reboot=reset"]);
    machine.exercise();
    let before = machine.descriptors();
    for round in 0..2 {
        for _ in 0..3 {
            machine.guest.ok(
                "cd /sys/bus/virtio/drivers/virtio_blk; device=$(ls -d virtio*); echo $device > unbind; \
                 [ ! -e /dev/vda ] && echo $device > bind; cd /; [ -b /dev/vda ]",
            );
            machine.exercise();
        }
        // Amid requests, by the button and by the guest's own kernel.
        machine.guest.ok("( exercise /dev/vda 0 4194304 4 1 /tmp/stop direct ) > /dev/null 2>&1 &");
        if round % 2 == 0 {
            Qmp::connect(&machine.scratch.join("qmp.sock")).ok("system_reset", &json!({}));
        } else {
            machine.guest.type_line("echo b > /proc/sysrq-trigger");
        }
        machine.guest.wait_until_ready();
        machine.exercise();
        assert!(machine.descriptors() <= before, "descriptors are left");
    }
    assert_eq!(machine.guest.power_off().code, Some(0));
    assert!(machine.backend.proc().is_running());
}

/// What make-initramfs.sh takes for these files at the places that they have on the host.
fn added(files: &[PathBuf]) -> Vec<String> {
    let add = |file: &PathBuf| ["--add".to_owned(), format!("{0}:{0}", file.display())];
    files.iter().flat_map(add).collect()
}

/// ext4 on a disk that one guest has for itself, with a kill and a replacement of the backend amid the work.
#[test]
fn file_system_of_a_guest_is_whole() {
    let mut made = added(&with_libraries(&["/sbin/mke2fs", "/sbin/e2fsck"].map(Path::new)));
    made.extend(["--module", "ext4"].map(String::from));
    let mut machine = Machine::boot(&made, &[]);
    let guest = &mut machine.guest;
    guest.ok("/sbin/mke2fs -q -t ext4 /dev/vda && mkdir /mnt && mount -t ext4 /dev/vda /mnt");
    guest.ok("truncate -s 8M /mnt/parts");
    guest.ok("exercise /mnt/whole 0 2097152 1 7 1000 buffered");
    guest.ok("( exercise /mnt/whole 0 2097152 1 8 /tmp/stop buffered ) > /tmp/whole 2>&1 &");
    guest.ok("( exercise /mnt/parts 0 8388608 4 9 /tmp/stop direct ) > /tmp/parts 2>&1 &");
    guest.ok("( while [ ! -e /tmp/stop ]; do cp /bin/busybox /mnt/b && mv /mnt/b /mnt/c && cmp /bin/busybox /mnt/c; done ) \
              > /tmp/files 2>&1 &");
    for round in 0..4 {
        machine.guest.ok("sync; cat /proc/diskstats > /dev/null; dd if=/dev/vda of=/dev/null bs=1M count=8 iflag=direct 2> /dev/null");
        machine.disturb(round % 2 == 0);
    }
    let guest = &mut machine.guest;
    guest.ok("sync; touch /tmp/stop; wait");
    for log in ["/tmp/whole", "/tmp/parts"] {
        let operations = guest.ok(&format!("cat {log}"));
        assert!(operations.trim().parse::<u64>().is_ok_and(|count| count > 0), "{log}: {operations}");
    }
    assert_eq!(guest.ok("cat /tmp/files"), "");
    guest.ok("umount /mnt");
    let checked = guest.ok("/sbin/e2fsck -f -n /dev/vda");
    assert!(checked.contains("non-contiguous"), "{checked}");
    let errors = guest.run("dmesg | grep -iE 'i/o error|ext4-fs error|blocked for more'");
    assert_eq!(errors.text, "", "the kernel of the guest noticed something");
    assert_eq!(machine.guest.power_off().code, Some(0));
}

/// Random blocks written by fio and read back by it, with checksums in each: one job past the page cache with many requests
/// in flight, one through it.
const FIO: &str = "chroot /fio /usr/bin/fio --thread --disk_util=0 --filename=$disk --minimal --verify_fatal=1 --verify_backlog=64 \
     --randseed=$n --name=direct --rw=randwrite --bsrange=4k-256k --size=16m --direct=1 --ioengine=libaio --iodepth=16 \
     --verify=crc32c --fsync=64 \
     --name=cached --rw=randrw --bsrange=512-64k --offset=24m --size=8m --ioengine=psync --verify=md5 --fsync=32";

/// `fio --verify` on a disk that one guest has for itself, with kills and replacements of the backend amid its work.
#[test]
fn fio_finds_what_it_has_written() {
    let scratch = Scratch::new();
    let programs = GuestRoot::of(&scratch, &with_libraries(&[Path::new("/usr/bin/fio")])).pack();
    let raw = format!("{},fio,ro", programs.display());
    let image = image(&["--module", "ext4"].map(String::from));
    let mut machine = Machine::boot_in(scratch, command, &image, &["--raw", &raw]);
    let programs = machine.device("fio");
    machine.guest.ok(&format!(
        "mkdir /fio && mount -t ext4 -o ro {programs} /fio && mount -t devtmpfs dev /fio/dev && mount -t tmpfs tmp /fio/tmp"
    ));
    machine.guest.ok(&format!(
        "disk={}; ( n=0; while [ ! -e /tmp/stop ]; do n=$((n + 1)); {FIO} > /tmp/fio 2>&1 || {{ cat /tmp/fio; break; }}; done; \
         echo $n ) > /tmp/log 2>&1 &",
        machine.disk
    ));
    let ctl = Ctl::new(machine.scratch.join("ctl.sock"));
    for round in 0..6 {
        until("fio to get on", || {
            let stats = ctl.stats("issuer");
            ["writes", "reads"].iter().all(|what| stats[what].as_u64().unwrap() > 40).then_some(())
        });
        machine.disturb(round % 2 == 0);
    }
    machine.guest.ok("touch /tmp/stop; wait");
    let log = machine.guest.ok("cat /tmp/log");
    assert!(log.trim().parse::<u32>().is_ok_and(|rounds| rounds > 0), "{log}");
    let errors = machine.guest.run("dmesg | grep -iE 'i/o error|blocked for more'");
    assert_eq!(errors.text, "", "the kernel of the guest noticed something");
    assert_eq!(machine.guest.power_off().code, Some(0));
}

/// Kernels that are started from one another; each costs half a minute on a busy machine without KVM.
const RESTARTS: usize = 1;

/// The kernel starts another one amid requests, and nobody presses a button: the old one leaves the disk as it is, the new one
/// takes it up anew. The other guest notices nothing.
#[test]
fn guest_goes_over_to_another_kernel() {
    let scratch = Scratch::new();
    let image = image(&["--add".into(), format!("{}:/bin/kexec", kexec_binary().display())]);
    let padded = |name: &str, file: &Path| {
        let mut bytes = fs::read(file).unwrap();
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        fs::write(scratch.join(name), bytes).unwrap();
        format!("{},{name},ro", scratch.join(name).display())
    };
    let [kernel, initramfs] =
        [("kernel", image.kernel()), ("initramfs", image.initramfs())].map(|(name, file)| padded(name, file));
    let serve = |scratch: &Scratch| command(scratch).arg("--multi-writer").rw("other");
    let mut machine = Machine::boot_in(scratch, serve, &image, &["--raw", &kernel, "--raw", &initramfs]);
    let mut other = RawGuest::connect(&machine.backend.socket("other"));
    other.start_queues(1);
    let polite = Polite::start(other, Stand::SIZE / SECTOR as u64);
    machine.exercise();
    let (before, mut boots) = (machine.descriptors(), Vec::new());
    for _ in 0..RESTARTS {
        boots.push(machine.guest.ok("cat /proc/sys/kernel/random/boot_id"));
        for name in ["kernel", "initramfs"] {
            let device = machine.device(name);
            machine.guest.ok(&format!("cat {device} > /tmp/{name}"));
        }
        let disk = machine.disk.clone();
        machine.guest.ok(&format!("( exercise {disk} 0 4194304 4 1 /tmp/stop direct ) > /dev/null 2>&1 &"));
        machine.guest.type_line("kexec /tmp/kernel /tmp/initramfs || echo no kexec");
        machine.guest.wait_until_ready();
        machine.disk = machine.device("receiptdisk");
        let boot = machine.guest.ok("cat /proc/sys/kernel/random/boot_id");
        assert!(!boots.contains(&boot), "another kernel runs");
        machine.exercise();
        polite.assert_goes_on();
        assert!(machine.descriptors() <= before, "descriptors are left");
    }
    assert_eq!(machine.guest.power_off().code, Some(0));
    drop(polite);
    assert!(!machine.backend.log().contains("error="), "{}", machine.backend.log());
}
