//! What a sync claims to have made durable.

use super::*;
use crate::image::{CacheMode, ImageOptions};

const BLOCK: u64 = 4096;

fn block(index: u64) -> ByteRange {
    ByteRange { start: index * BLOCK, end: (index + 1) * BLOCK }
}

fn disk(folder: &tempfile::TempDir, track_dirty: bool, recorder: Option<Recorder>) -> Disk {
    let path = folder.path().join("disk.img");
    let options =
        ImageOptions { path, create_bytes: Some(16 * BLOCK), writable: true, cache: CacheMode::Page };
    let disk = Disk::new(Image::open(&options).unwrap(), true, track_dirty, recorder);
    disk.sync().unwrap();
    disk
}

#[test]
fn sync_claims_no_write_that_completes_while_it_runs() {
    for track_dirty in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(&folder, track_dirty, None);
        let before = disk.note_completed_write(block(0));
        let mut meanwhile = 0;
        let sync = disk.sync_by(|_| {
            meanwhile = disk.note_completed_write(block(1));
            Ok(())
        });
        sync.unwrap();
        assert!(disk.is_synced(before));
        assert_eq!(disk.unsynced_sequence(block(1)), Some(meanwhile), "its range is still to be synced");
        assert!(!disk.is_synced(meanwhile), "nobody may take it for durable");
        if track_dirty {
            assert_eq!(disk.unsynced_sequence(block(0)), None);
        }
        disk.sync().unwrap();
        assert_eq!((disk.is_synced(meanwhile), disk.unsynced_sequence(block(1))), (true, None));
    }
}

#[test]
fn log_puts_a_write_that_completes_during_a_sync_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let disk = disk(&folder, false, Some(Recorder::create(&log).unwrap()));
    let len_bytes = || std::fs::metadata(&log).unwrap().len();
    let at_start = len_bytes();
    disk.note_completed_write(block(0));
    let sync = disk.sync_by(|_| {
        disk.note_completed_write(block(1));
        Ok(())
    });
    sync.unwrap();
    // One write and the mark of the sync; the other write waits for the next one.
    assert_eq!(len_bytes() - at_start, 512 + BLOCK + 512);
    disk.sync().unwrap();
    assert_eq!(len_bytes() - at_start, 2 * (512 + BLOCK + 512));
}

#[test]
fn failed_sync_claims_nothing_and_is_not_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(&folder, true, None);
    let written = disk.note_completed_write(block(0));
    let failed = disk.sync_by(|_| Err(io::Error::from_raw_os_error(libc::EIO)));
    assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(disk.is_poisoned() && !disk.is_synced(written));
    disk.sync_by(|_| unreachable!("a failed sync is not tried again")).unwrap_err();
    assert_eq!(disk.unsynced_sequence(block(0)), Some(written));
}

/// The kernel tells a write-back error to one of several syncs only; the other would take its writes for durable.
#[test]
fn syncs_run_one_at_a_time_and_none_outlives_a_failed_one() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(&folder, false, None);
    let written = disk.note_completed_write(block(0));
    std::thread::scope(|scope| {
        let failed = disk.sync_by(|_| {
            let second =
                scope.spawn(|| disk.sync_by(|_| unreachable!("it began beside another, or after it failed")));
            let asked = || disk.syncing.try_lock().is_err();
            assert!(asked(), "a second sync could begin");
            drop(second);
            Err(io::Error::from_raw_os_error(libc::EIO))
        });
        failed.unwrap_err();
    });
    assert!(!disk.is_synced(written));
}

#[test]
fn sync_of_an_image_that_was_cut_off_fails_whatever_the_kernel_says() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(&folder, false, None);
    std::fs::OpenOptions::new().write(true).open(&disk.image().path).unwrap().set_len(15 * BLOCK).unwrap();
    let error = disk.sync().unwrap_err().to_string();
    assert!(error.contains("cut off") && disk.is_poisoned(), "{error}");
}
