//! Finds the disk: the virtio disk whose serial begins with `receiptdisk`.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// What the serial of a receipt disk begins with.
pub const SERIAL_PREFIX: &str = "receiptdisk";

/// The device file of the one receipt disk of this machine.
///
/// # Errors
/// [`Error::Usage`] when there is none or more than one; the text lists them.
pub fn find_device() -> Result<PathBuf> {
    find_device_in(Path::new("/sys/block"), Path::new("/dev"))
}

/// As [`find_device`], with the folders given.
///
/// # Errors
/// As [`find_device`].
pub fn find_device_in(sys_block: &Path, dev: &Path) -> Result<PathBuf> {
    let mut found: Vec<(PathBuf, String)> = Vec::new();
    for entry in std::fs::read_dir(sys_block).into_iter().flatten().flatten() {
        let Ok(serial) = std::fs::read_to_string(entry.path().join("serial")) else {
            continue;
        };
        let serial = serial.trim().to_owned();
        if serial.starts_with(SERIAL_PREFIX) {
            found.push((dev.join(entry.file_name()), serial));
        }
    }
    found.sort();
    match found.as_slice() {
        [] => Err(Error::Usage(format!(
            "no disk with a serial that begins with `{SERIAL_PREFIX}` in {}: attach one, or name a device with --device",
            sys_block.display()
        ))),
        [(device, _)] => Ok(device.clone()),
        several => {
            let list: Vec<String> =
                several.iter().map(|(device, serial)| format!("{} ({serial})", device.display())).collect();
            Err(Error::Usage(format!("several receipt disks, name one with --device: {}", list.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_disk_with_the_serial_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let add = |name: &str, serial: &str| {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("serial"), serial).unwrap();
        };
        let find = || find_device_in(dir.path(), Path::new("/dev"));
        std::fs::create_dir(dir.path().join("loop0")).unwrap();
        add("vda", "root");
        assert!(find().unwrap_err().to_string().contains("--device"));
        add("vdb", "receiptdisk-front\n");
        assert_eq!(find().unwrap(), PathBuf::from("/dev/vdb"));
        add("vdc", "receiptdisk-issuer");
        let error = find().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("/dev/vdb (receiptdisk-front), /dev/vdc"), "{error}");
    }
}
