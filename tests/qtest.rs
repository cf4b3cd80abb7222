//! What QEMU's own tests of a vhost-user-blk backend do, through the same QEMU: a driver at the PCI bus of a machine without a
//! processor. In each the process must end with status 0 in the end.

use serde_json::{Value, json};

use receiptdisk_tests::qtest::Machine;
use receiptdisk_tests::qtest::disk::PciDisk;
use receiptdisk_tests::raw::{Request, SegmentFlags, feature, status};
use receiptdisk_tests::{Backend, Ctl, SECTOR, Scratch, Serve, Stand, pattern, until};

const SLOT: u8 = 4;
const OTHER_SLOT: u8 = 5;
const QUEUES: u16 = 4;

/// Where the configuration says how many queues there are (virtio 1.2, 5.2.4).
const NUM_QUEUES_AT: u64 = 34;

/// QEMU, the backend, and its files.
struct Bench {
    machine: Machine,
    backend: Backend,
    scratch: Scratch,
}

impl Bench {
    /// A machine with guest `a`'s disk in its slot.
    fn new() -> Self {
        let scratch = Scratch::new();
        scratch.image(Stand::SIZE);
        let backend = serve(&scratch).start();
        let chardev = format!("socket,id=a,path={},reconnect=1", backend.socket("a").display());
        let device = format!("vhost-user-blk-pci,chardev=a,addr={SLOT:#x},num-queues={QUEUES}");
        let arguments = ["-chardev", &chardev, "-device", &device].map(String::from);
        Self { machine: Machine::start(&scratch, &arguments), backend, scratch }
    }

    fn disk(&mut self, features: u64) -> PciDisk {
        PciDisk::start(&mut self.machine, SLOT, feature::VERSION_1 | features, 1)
    }

    fn ctl(&self) -> Ctl {
        Ctl::new(self.scratch.join("ctl.sock"))
    }

    /// Has QEMU take guest `b`'s disk into the other slot, or says why it does not.
    fn plug(&mut self, queues: u16) -> Result<(), String> {
        let path = self.backend.socket("b");
        let address = json!({"type": "unix", "data": {"path": path}});
        let socket = json!({"type": "socket", "data": {"addr": address, "server": false}});
        self.machine.qmp().ok("chardev-add", &json!({"id": "b", "backend": socket}));
        let slot = format!("{OTHER_SLOT:#x}");
        let device = json!({"driver": "vhost-user-blk-pci", "id": "disk-b", "chardev": "b", "addr": slot, "num-queues": queues});
        let added = self.machine.qmp().run("device_add", &device).map(|_: Value| ());
        if added.is_err() {
            self.machine.qmp().ok("chardev-remove", &json!({"id": "b"}));
        }
        added
    }

    /// Takes it out again.
    fn unplug(&mut self, disk: PciDisk) {
        self.machine.qmp().ok("device_del", &json!({"id": "disk-b"}));
        disk.eject(&mut self.machine);
        self.machine.qmp().wait_for("DEVICE_DELETED");
        // The device lets go of it a moment later.
        until("the connection to be free", || {
            self.machine.qmp().run("chardev-remove", &json!({"id": "b"})).ok()
        });
    }

    #[track_caller]
    fn end(mut self) {
        assert_eq!(self.backend.terminate().code, Some(0), "with the front end still there");
        assert_eq!(self.machine.terminate().code, Some(0));
    }
}

fn serve(scratch: &Scratch) -> Serve {
    let serve = Serve::image(&scratch.join("disk.img")).arg("--control").arg(scratch.join("ctl.sock"));
    serve.arg("--queues").arg(QUEUES.to_string()).arg("--multi-writer").rw("a").rw("b")
}

/// Writes and reads back, and all the other requests.
#[track_caller]
fn assert_works(machine: &mut Machine, disk: &mut PciDisk, queue: usize) {
    let mut ask = |request: &Request| disk.request(machine, queue, request);
    let mut status_of = |request: &Request| ask(request).status;
    let data = pattern(queue as u64, 0, 64 << 10);
    assert_eq!(status_of(&Request::write(8, &data)), status::OK);
    assert_eq!(status_of(&Request::flush()), status::OK);
    assert_eq!(status_of(&Request::discard(&[(1024, 64)])), status::OK);
    let zeroes = |flags| Request::write_zeroes(&[(16, 8), (32, 16)], flags);
    assert_eq!(status_of(&zeroes(SegmentFlags::default())), status::OK);
    assert_eq!(status_of(&zeroes(SegmentFlags::UNMAP)), status::OK);
    let end = Stand::SIZE / SECTOR as u64;
    for beyond in
        [Request::read(end, SECTOR), Request::write(end - 1, &[0; 1024]), Request::discard(&[(end, 1)])]
    {
        assert_eq!(status_of(&beyond), status::IOERR);
    }
    assert_eq!(status_of(&Request::new(99, 0, &[], 0)), status::UNSUPP);
    assert!(ask(&Request::get_id()).data.starts_with(b"receiptdisk"));
    let mut expected = data;
    for (sector, count) in [(16, 8), (32, 16)] {
        expected[(sector - 8) * SECTOR..][..count * SECTOR].fill(0);
    }
    let read = ask(&Request::read(8, expected.len()));
    assert!(read.status == status::OK && read.data == expected, "not what was written");
}

#[test]
fn basic() {
    let mut bench = Bench::new();
    let mut disk = bench.disk(feature::DISCARD | feature::WRITE_ZEROES);
    assert_eq!(disk.config(&mut bench.machine, 0, 8), Stand::SIZE / SECTOR as u64);
    assert_works(&mut bench.machine, &mut disk, 0);
    bench.end();
}

#[test]
fn indirect() {
    let mut bench = Bench::new();
    let mut disk = bench.disk(feature::INDIRECT_DESC);
    assert_works(&mut bench.machine, &mut disk, 0);
    bench.end();
}

#[test]
fn config_changes_with_the_size() {
    let mut bench = Bench::new();
    let mut disk = bench.disk(0);
    let request = Request::write(Stand::SIZE / SECTOR as u64, &[1; SECTOR]);
    assert_eq!(disk.request(&mut bench.machine, 0, &request).status, status::IOERR);
    bench.ctl().ok(&["resize", &(2 * Stand::SIZE).to_string()]);
    disk.wait_for_config_change(&mut bench.machine);
    assert_eq!(disk.config(&mut bench.machine, 0, 8), 2 * Stand::SIZE / SECTOR as u64);
    assert_eq!(disk.request(&mut bench.machine, 0, &request).status, status::OK);
    bench.end();
}

#[test]
fn event_index() {
    let mut bench = Bench::new();
    let mut disk = bench.disk(feature::EVENT_IDX | feature::INDIRECT_DESC);
    let machine = &mut bench.machine;
    let read = Request::read(0, SECTOR);
    assert_eq!(disk.interrupting_request(machine, 0, &read).status, status::OK);
    // One more answer: the interrupt for the first has been sent by now, and the next but one command finds it.
    disk.interrupt_after(machine, 0, 5);
    disk.request(machine, 0, &read);
    for _ in 0..2 {
        disk.was_interrupted(machine);
    }
    for _ in 0..3 {
        disk.request(machine, 0, &read);
        assert!(!disk.was_interrupted(machine), "too early");
    }
    assert_eq!(disk.interrupting_request(machine, 0, &read).status, status::OK);
    bench.end();
}

#[test]
fn queue_that_is_not_there_is_notified() {
    let mut bench = Bench::new();
    let mut disk = bench.disk(0);
    for queue in [QUEUES, 100, 1023] {
        disk.notify_nobody(&mut bench.machine, queue);
    }
    assert_works(&mut bench.machine, &mut disk, 0);
    bench.end();
}

#[test]
fn hotplug() {
    let mut bench = Bench::new();
    let mut first = bench.disk(0);
    for _ in 0..3 {
        bench.plug(1).unwrap();
        let mut second = PciDisk::start(&mut bench.machine, OTHER_SLOT, feature::VERSION_1, 1);
        assert_works(&mut bench.machine, &mut second, 0);
        assert_works(&mut bench.machine, &mut first, 0);
        bench.unplug(second);
    }
    assert_works(&mut bench.machine, &mut first, 0);
    bench.end();
}

#[test]
fn multiqueue() {
    let mut bench = Bench::new();
    let error = bench.plug(2 * QUEUES).unwrap_err();
    assert!(error.contains("queues"), "{error}");
    bench.plug(QUEUES).unwrap();
    let mut disk = PciDisk::start(&mut bench.machine, OTHER_SLOT, feature::VERSION_1 | feature::MQ, QUEUES);
    assert_eq!(disk.queue_count(&mut bench.machine), u64::from(QUEUES));
    assert_eq!(disk.config(&mut bench.machine, NUM_QUEUES_AT, 2), u64::from(QUEUES));
    for queue in 0..usize::from(QUEUES) {
        assert_works(&mut bench.machine, &mut disk, queue);
    }
    bench.unplug(disk);
    bench.end();
}

/// As a driver that is loaded again, and after a backend that was replaced or killed.
#[test]
fn device_is_reset_and_the_backend_goes_and_comes_back() {
    let mut bench = Bench::new();
    for features in [0, feature::EVENT_IDX, feature::INDIRECT_DESC] {
        let mut disk = bench.disk(features);
        assert_works(&mut bench.machine, &mut disk, 0);
        let fresh = serve(&bench.scratch).arg("--replace").spawn();
        assert_eq!(bench.backend.proc().wait().code, Some(0), "{}", fresh.log());
        bench.backend = fresh;
        assert_works(&mut bench.machine, &mut disk, 0);
        bench.backend.kill();
        bench.backend = serve(&bench.scratch).start();
        assert_works(&mut bench.machine, &mut disk, 0);
    }
    bench.end();
}
