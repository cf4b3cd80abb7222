//! What happens in the life of a QEMU guest: reboots, drivers that leave and come back, a file system of its own.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use receiptdisk_tests::{Backend, Guest, GuestImage, Scratch, Serve, Stand, exercise_binary, until};

/// A backend and its only guest, which ends first.
struct Machine {
    guest: Guest,
    backend: Backend,
    scratch: Scratch,
}

impl Machine {
    /// `made` and `options` are those of make-initramfs.sh and run-guest.sh.
    fn boot(made: &[String], options: &[&str]) -> Self {
        let scratch = Scratch::new();
        scratch.image(2 * Stand::SIZE);
        let backend = command(&scratch).start();
        let exercise = format!("{}:/bin/exercise", exercise_binary().display());
        let image = GuestImage::of(&[made, &["--add".into(), exercise]].concat());
        let qmp = scratch.join("qmp.sock");
        let options = [&["--memory", "192M", "--qmp", qmp.to_str().unwrap()], options].concat();
        let guest = Guest::boot("issuer", scratch.path(), &image, &options).ready();
        Self { guest, backend, scratch }
    }

    fn exercise(&mut self) {
        self.guest.ok("exercise /dev/vda 0 4194304 2 1 100 direct");
    }

    fn descriptors(&mut self) -> usize {
        let mut last = 0;
        until("the number of descriptors to settle", || {
            let now = self.backend.proc().open_fds();
            (std::mem::replace(&mut last, now) == now).then_some(now)
        })
    }
}

fn command(scratch: &Scratch) -> Serve {
    Serve::image(&scratch.join("disk.img")).arg("--control").arg(scratch.join("ctl.sock")).rw("issuer")
}

/// Presses the machine's reset button.
fn press_reset(socket: &Path) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    let mut answer = || {
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        line
    };
    assert!(answer().contains("QMP"));
    for command in ["qmp_capabilities", "system_reset"] {
        writeln!(stream, "{{\"execute\":\"{command}\"}}").unwrap();
        let answer = answer();
        assert!(answer.contains("return") || answer.contains("RESET"), "{answer}");
    }
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
            press_reset(&machine.scratch.join("qmp.sock"));
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

/// Programs of the host with the libraries that they need.
fn with_libraries(programs: &[&str]) -> Vec<String> {
    let output = Command::new("ldd").args(programs).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let libraries =
        text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    let mut files: Vec<&str> =
        libraries.map(|file| file.trim_end_matches(':')).chain(programs.iter().copied()).collect();
    files.sort_unstable();
    files.dedup();
    files.iter().flat_map(|file| ["--add".to_owned(), format!("{file}:{file}")]).collect()
}

/// ext4 on a disk that one guest has for itself, with a kill and a replacement of the backend amid the work.
#[test]
fn file_system_of_a_guest_is_whole() {
    let mut made = with_libraries(&["/sbin/mke2fs", "/sbin/e2fsck"]);
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
        guest.ok("sync; cat /proc/diskstats > /dev/null; dd if=/dev/vda of=/dev/null bs=1M count=8 iflag=direct 2> /dev/null");
        if round % 2 == 0 {
            machine.backend.kill();
            machine.backend = command(&machine.scratch).start();
        } else {
            let fresh = command(&machine.scratch).arg("--replace").spawn();
            assert_eq!(machine.backend.proc().wait().code, Some(0), "{}", fresh.log());
            machine.backend = fresh;
        }
    }
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
