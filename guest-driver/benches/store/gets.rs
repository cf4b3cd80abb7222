//! Gets: cold, warm and by locator, beside the raw reads of the same bytes.

use crate::fio::fio;
use crate::{RECORD_BYTES, memory_mib, micros, path, receipt};
use receipt_store::device::AlignedBuf;
use receipt_store::{Device, Locator, RawDevice, Reader};
use std::path::Path;

const GETS: usize = 1000;

pub fn get_all(disk: &Path, raw: &Path, stored: &[Locator]) {
    let device = RawDevice::open_reader(disk).unwrap();
    let warm = Reader::new(&device, "disk");
    warm.superblock().unwrap();
    let mut page = AlignedBuf::zeroed(2);
    let mut record = AlignedBuf::zeroed(RECORD_BYTES / 4096);
    let mut times: [Vec<f64>; 4] = Default::default();
    let mut at = 1;
    for _ in 0..GETS {
        at = (at * 48271 + 7) % stored.len();
        let locator = &stored[at];
        times[0].push(micros(|| drop(Reader::new(&device, "disk").get(&locator.path).unwrap())));
        times[1].push(micros(|| drop(warm.get(&locator.path).unwrap())));
        times[2].push(micros(|| drop(warm.get_locator(locator).unwrap())));
        times[3].push(micros(|| {
            device.read((at as u64 % 1024) * 8192, page.as_mut_slice()).unwrap();
            device.read(locator.block * 4096, record.as_mut_slice()).unwrap();
        }));
    }
    println!("\n| get of 100 KiB | p50 us | p99 us |\n|---|---|---|");
    for (name, times) in
        ["cold (3 reads)", "warm (2 reads)", "by locator (1 read)", "raw reads of 8 + 104 KiB, same program"]
            .iter()
            .zip(&mut times)
    {
        times.sort_by(f64::total_cmp);
        println!("| {name} | {:.0} | {:.0} |", times[times.len() / 2], times[times.len() * 99 / 100]);
    }
    let (_, p50, p99) = fio(raw, "randread", RECORD_BYTES, GETS * RECORD_BYTES);
    println!("| fio, random reads of 104 KiB | {p50:.0} | {p99:.0} |");
    println!("\nwarm get / two raw reads: {:.2}", times[1][GETS / 2] / times[3][GETS / 2]);
}

/// Gets a thousand receipts and says how much memory that took at most.
pub fn read_only(disk: &Path) {
    let reader = Reader::new(RawDevice::open_reader(disk).unwrap(), "disk");
    for number in 0..GETS {
        assert_eq!(reader.get(&path(number)).unwrap().data(), receipt(number));
    }
    println!("{} MiB", memory_mib());
}
