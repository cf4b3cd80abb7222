//! Hash and checksum of the data of many changes, on several processors while the caller waits for the disk.

use crate::checksum::DataSums;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Below so many bytes a second thread costs more than it saves.
const SHARED_BYTES_MIN: usize = 256 << 10;

/// Hashes every one of `datas` and runs `meanwhile`; with a second thread where that pays.
pub fn hash_all<T>(datas: &[&[u8]], meanwhile: impl FnOnce() -> T) -> (Vec<DataSums>, T) {
    let hashes: Vec<OnceLock<DataSums>> = datas.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((data, hash)) = Some(next.fetch_add(1, Ordering::Relaxed))
            .and_then(|number| datas.get(number).zip(hashes.get(number)))
        {
            hash.get_or_init(|| DataSums::of(data));
        }
    };
    let is_shared = datas.len() > 1
        && datas.iter().map(|data| data.len()).sum::<usize>() >= SHARED_BYTES_MIN
        && has_several_processors();
    let answer = std::thread::scope(|scope| {
        // Without a second thread this one does it all.
        let second = is_shared.then(|| std::thread::Builder::new().spawn_scoped(scope, work));
        let answer = meanwhile();
        work();
        drop(second);
        answer
    });
    // All are there: the scope has waited for both threads.
    let whole = hashes.into_iter().zip(datas);
    (whole.map(|(hash, data)| *hash.get_or_init(|| DataSums::of(data))).collect(), answer)
}

/// Whether this process may run on more than one processor. Asked once.
fn has_several_processors() -> bool {
    static SEVERAL: OnceLock<bool> = OnceLock::new();
    *SEVERAL.get_or_init(|| rustix::thread::sched_getaffinity(None).is_ok_and(|set| set.count() > 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_each_data_in_their_order() {
        for (count, len) in [(0, 10), (1, 1 << 20), (3, 10), (40, 100_000)] {
            let datas: Vec<Vec<u8>> = (0..count).map(|n: u8| vec![n; len + usize::from(n)]).collect();
            let slices: Vec<&[u8]> = datas.iter().map(Vec::as_slice).collect();
            let (hashes, answer) = hash_all(&slices, || 7);
            assert_eq!(answer, 7);
            let expected: Vec<DataSums> = datas.iter().map(|data| DataSums::of(data)).collect();
            assert_eq!(hashes, expected);
        }
    }
}
