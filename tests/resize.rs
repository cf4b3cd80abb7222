//! A disk that grows while guests use it.

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;

use receiptdisk_tests::raw::{Message, RawGuest, Request, Setup, Wire, status};
use receiptdisk_tests::{
    Backend, Ctl, Guest, LoopDevice, SECTOR, Scratch, Serve, SmallTmpfs, Stand, pattern, until,
};

const LARGER: u64 = 2 * Stand::SIZE;

fn serve(scratch: &Scratch) -> Backend {
    let serve = Serve::image(&scratch.join("disk.img"));
    serve.arg("--control").arg(scratch.join("ctl.sock")).rw("issuer").ro("front").start()
}

fn ctl(scratch: &Scratch) -> Ctl {
    Ctl::new(scratch.join("ctl.sock"))
}

/// A guest whose front end has read the size, and the way on which it is told of another.
fn guest(backend: &Backend, name: &str) -> (RawGuest, Wire) {
    let mut guest = RawGuest::connect(&backend.socket(name));
    let channel = guest.front().open_channel();
    guest.front().config();
    guest.start(Setup { is_tracked: true, ..Setup::default() });
    (guest, channel)
}

#[track_caller]
fn assert_told(channel: &Wire) {
    const CONFIG_CHANGE: u32 = 2;
    assert_eq!(channel.receive().unwrap().0, Message::new(CONFIG_CHANGE, &[]));
}

#[test]
fn every_guest_is_told_and_uses_what_is_new() {
    let scratch = Scratch::new();
    let image = scratch.image(Stand::SIZE);
    let mut backend = serve(&scratch);
    let [(mut writer, to_writer), (mut reader, to_reader)] =
        ["issuer", "front"].map(|name| guest(&backend, name));
    let last = LARGER / SECTOR as u64 - 8;
    let data = pattern(1, 0, 4096);
    assert_eq!(writer.request(&Request::write(last, &data)).status, status::IOERR, "not there yet");

    ctl(&scratch).ok(&["resize", "64M"]);
    for (guest, channel) in [(&writer, &to_writer), (&reader, &to_reader)] {
        assert_told(channel);
        assert_eq!(guest.front().config().capacity, LARGER / SECTOR as u64);
    }
    assert_eq!(writer.request(&Request::write(last, &data)).status, status::OK);
    assert!(reader.request(&Request::read(last, 4096)).data == data);
    assert_eq!(ctl(&scratch).ok(&["status"])["capacity_bytes"], LARGER);
    // As `--create` makes it: the host has room for all that is new.
    let allocated_bytes = std::fs::metadata(&image).unwrap().blocks() * SECTOR as u64;
    assert!(allocated_bytes >= LARGER - Stand::SIZE, "{allocated_bytes} bytes are allocated");

    assert_eq!(backend.terminate().code, Some(0));
    backend = serve(&scratch);
    assert_eq!(guest(&backend, "front").0.front().config().capacity, LARGER / SECTOR as u64);
}

/// Who wants no room allocated makes the file longer first.
#[test]
fn file_that_is_longer_already_is_adopted_as_it_is() {
    let scratch = Scratch::new();
    let image = scratch.image(Stand::SIZE);
    let backend = serve(&scratch);
    let (writer, channel) = guest(&backend, "issuer");
    OpenOptions::new().write(true).open(&image).unwrap().set_len(LARGER).unwrap();
    let blocks = std::fs::metadata(&image).unwrap().blocks();
    ctl(&scratch).ok(&["resize", "64M"]);
    assert_told(&channel);
    assert_eq!(writer.front().config().capacity, LARGER / SECTOR as u64);
    assert_eq!(std::fs::metadata(&image).unwrap().blocks(), blocks);
}

#[test]
fn disk_that_grew_while_no_backend_ran_is_told_to_those_who_come_back() {
    let scratch = Scratch::new();
    let image = scratch.image(Stand::SIZE);
    let mut backend = serve(&scratch);
    let (mut returning, _) = guest(&backend, "front");
    backend.kill();
    OpenOptions::new().write(true).open(image).unwrap().set_len(LARGER).unwrap();
    backend = serve(&scratch);
    returning.greet_again(&backend.socket("front"));
    let channel = returning.front().open_channel();
    returning.start_again(0);
    assert_told(&channel);
    assert_eq!(returning.front().config().capacity, LARGER / SECTOR as u64);
}

/// The device is made larger first; the backend, in its sandbox, then looks how large it is.
#[test]
fn block_device_is_adopted_at_its_size() {
    let scratch = Scratch::new();
    let file = scratch.image(Stand::SIZE);
    let device = LoopDevice::new(&file);
    let link = scratch.join("device");
    std::os::unix::fs::symlink(device.path(), &link).unwrap();
    let backend = Serve::image(&link).arg("--control").arg(scratch.join("ctl.sock")).rw("issuer").start();
    let (mut guest, channel) = self::guest(&backend, "issuer");
    guest.assert_works();
    let status = ctl(&scratch).ok(&["status"]);
    assert_eq!(status["sandbox"]["seccomp"], true, "{status}");

    let refused = ctl(&scratch).run(&["resize", "64M"]).unwrap_err();
    assert!(refused.contains("a device is resized first"), "{refused}");
    OpenOptions::new().write(true).open(file).unwrap().set_len(LARGER).unwrap();
    device.adopt_size();
    ctl(&scratch).ok(&["resize", "64M"]);
    assert_told(&channel);
    let last = LARGER / SECTOR as u64 - 8;
    assert_eq!(guest.request(&Request::write(last, &pattern(1, 0, 4096))).status, status::OK);
    drop(backend);
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let scratch = Scratch::new();
    let image = scratch.image(Stand::SIZE);
    let backend = serve(&scratch);
    let (_writer, _channel) = guest(&backend, "issuer");
    for (size, reason) in [("16M", "only grow"), ("33554433", "multiple")] {
        let error = ctl(&scratch).run(&["resize", size]).unwrap_err();
        assert!(error.contains(reason), "{size}: {error}");
    }
    // Somebody else made it longer: that is not cut off again.
    OpenOptions::new().write(true).open(&image).unwrap().set_len(LARGER).unwrap();
    assert!(ctl(&scratch).run(&["resize", "48M"]).unwrap_err().contains("67108864 bytes now"));
    ctl(&scratch).ok(&["resize", "64M"]);
    assert_eq!(std::fs::metadata(&image).unwrap().len(), LARGER);
}

/// A host without room says so at once, and not to a guest that writes later; nothing has changed then.
#[test]
fn disk_that_the_host_has_no_room_for_stays_as_it_is() {
    let scratch = Scratch::new();
    let _small = SmallTmpfs::mount(scratch.path(), 8 << 20);
    let image = scratch.image(Stand::SIZE);
    let backend = serve(&scratch);
    let (mut writer, _channel) = guest(&backend, "issuer");
    let ctl = ctl(&scratch);
    let error = ctl.run(&["resize", "64M"]).unwrap_err();
    assert!(error.contains("No space left"), "{error}");
    assert_eq!(std::fs::metadata(&image).unwrap().len(), Stand::SIZE);
    assert_eq!(ctl.ok(&["status"])["capacity_bytes"], Stand::SIZE);
    writer.assert_works();
    ctl.ok(&["resize", "33M"]);
    writer.assert_works();
}

#[test]
fn linux_guests_see_the_new_size_at_once_and_after_an_outage() {
    let scratch = Scratch::new();
    let image = scratch.image(Stand::SIZE);
    let mut backend = serve(&scratch);
    let guests = ["issuer", "front"].map(|name| Guest::start(name, scratch.path()));
    let mut guests = guests.map(Guest::ready);
    let mut wait_for_size = |bytes: u64| {
        for guest in &mut guests {
            let sectors = (bytes / SECTOR as u64).to_string();
            until("the new size", || (guest.ok("cat /sys/block/vda/size").trim() == sectors).then_some(()));
        }
    };
    wait_for_size(Stand::SIZE);
    ctl(&scratch).ok(&["resize", "64M"]);
    wait_for_size(LARGER);
    backend.kill();
    OpenOptions::new().write(true).open(image).unwrap().set_len(2 * LARGER).unwrap();
    backend = serve(&scratch);
    wait_for_size(2 * LARGER);
    for guest in guests {
        assert_eq!(guest.power_off().code, Some(0));
    }
    assert_eq!(backend.terminate().code, Some(0));
}
