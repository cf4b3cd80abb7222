//! Puts: prepared commits, concurrent puts that share commits, and what a commit waits for.

use crate::fio::fio;
use crate::timed::{STEPS, Timed};
use crate::{RECORD_BYTES, ROUNDS, median, path, receipt};
use receipt_store::{
    CommitLimits, FormatOptions, Locator, OwnedChange, Put, RawDevice, ReceiptPath, SharedWriter, Writer,
    WriterOptions, format,
};
use std::path::Path;
use std::sync::Barrier;
use std::time::Instant;

const PUTS_PER_ROUND: usize = 256;
/// Most receipts of this size that a commit takes.
const COMMIT_RECEIPTS_MAX: usize = 80;

/// Where the disk is and how much is stored already.
struct Run<'a> {
    device: &'a Timed,
    raw: &'a Path,
    stored: Vec<Locator>,
}

pub fn put_all(disk: &Path, raw: &Path) -> Vec<Locator> {
    let device = RawDevice::open_writer(disk).unwrap();
    println!("direct IO: {}", device.is_direct());
    format(&device, &FormatOptions { force: true, ..FormatOptions::default() }).unwrap();
    let device = Timed::new(device);
    let mut run = Run { device: &device, raw, stored: Vec::new() };
    run.prepared();
    run.concurrent();
    run.steps();
    run.stored
}

impl<'a> Run<'a> {
    fn writer(&self) -> Writer<&'a Timed> {
        Writer::open(self.device, &WriterOptions::default()).unwrap()
    }

    fn receipts(&self, count: usize) -> Vec<(ReceiptPath, Vec<u8>)> {
        (0..count).map(|n| self.stored.len() + n).map(|n| (path(n), receipt(n))).collect()
    }

    fn fio_mb(&self, batch: usize, count: usize) -> f64 {
        fio(self.raw, "write", batch * RECORD_BYTES, count * RECORD_BYTES).0 / 1e6
    }

    fn commit(&mut self, writer: &mut Writer<&'a Timed>, receipts: &[(ReceiptPath, Vec<u8>)]) {
        let puts: Vec<Put<'_>> = receipts.iter().map(|(path, data)| Put::new(path, data)).collect();
        self.stored.extend(writer.commit(&puts).unwrap().into_iter().map(|put| put.unwrap().locator));
    }

    fn prepared(&mut self) {
        println!(
            "\n| receipts in a commit | receipts/s | MB/s | fio MB/s, same writes and flushes | store / fio |"
        );
        println!("|---|---|---|---|---|");
        for batch in [1, 8, 32, COMMIT_RECEIPTS_MAX] {
            let mut writer = self.writer();
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                let count = if batch == 1 { PUTS_PER_ROUND / 4 } else { PUTS_PER_ROUND / batch * batch };
                let receipts = self.receipts(count);
                let began = Instant::now();
                for receipts in receipts.chunks(batch) {
                    self.commit(&mut writer, receipts);
                }
                ours.push(count as f64 / began.elapsed().as_secs_f64());
                theirs.push(self.fio_mb(batch, count));
            }
            writer.close().unwrap();
            print_row(&format!("{batch}"), &mut ours, &mut theirs);
        }
    }

    fn concurrent(&mut self) {
        println!(
            "\n| concurrent puts | receipts in a commit | receipts/s | MB/s | fio MB/s, writes of as many (at most {COMMIT_RECEIPTS_MAX}) | store / fio |"
        );
        println!("|---|---|---|---|---|---|");
        for threads in [1, 8, 32, 128] {
            let shared = SharedWriter::new(self.writer(), CommitLimits::default());
            self.device.take();
            let (mut ours, mut theirs, mut puts) = (Vec::new(), Vec::new(), 0);
            for _ in 0..ROUNDS {
                let count = if threads == 1 { PUTS_PER_ROUND / 4 } else { PUTS_PER_ROUND };
                let seconds = self.put_concurrently(&shared, threads, count);
                ours.push(count as f64 / seconds);
                theirs.push(self.fio_mb(threads.min(COMMIT_RECEIPTS_MAX), count));
                puts += count;
            }
            let (_, flushes) = self.device.take()[3];
            shared.close().unwrap();
            print_row(&format!("{threads} | {:.1}", puts as f64 / flushes as f64), &mut ours, &mut theirs);
        }
    }

    /// Each thread puts its share, one receipt after the other. Returns seconds.
    fn put_concurrently(&mut self, shared: &SharedWriter<&'a Timed>, threads: usize, count: usize) -> f64 {
        let mut shares: Vec<Vec<OwnedChange>> = vec![Vec::new(); threads];
        for (n, (path, data)) in self.receipts(count).into_iter().enumerate() {
            shares[n % threads].push(OwnedChange::put(path, data));
        }
        let start = Barrier::new(threads + 1);
        let mut began = Instant::now();
        let stored: Vec<Locator> = std::thread::scope(|scope| {
            let workers: Vec<_> = shares
                .into_iter()
                .map(|share| {
                    let start = &start;
                    scope.spawn(move || {
                        start.wait();
                        share.into_iter().map(|put| shared.change(put).unwrap().locator).collect::<Vec<_>>()
                    })
                })
                .collect();
            start.wait();
            began = Instant::now();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        });
        let seconds = began.elapsed().as_secs_f64();
        let mut stored = stored;
        stored.sort_by(|one, other| one.path.as_str().cmp(other.path.as_str()));
        self.stored.extend(stored);
        seconds
    }

    /// What a commit of 32 waits for, by step.
    fn steps(&mut self) {
        let mut writer = self.writer();
        let mut times: [Vec<f64>; STEPS.len() + 2] = Default::default();
        for _ in 0..40 {
            let receipts = self.receipts(32);
            self.device.take();
            let began = Instant::now();
            self.commit(&mut writer, &receipts);
            let whole = began.elapsed().as_secs_f64() * 1e6;
            let steps = self.device.take().map(|(micros, _)| micros);
            let rest = whole - steps.iter().sum::<f64>();
            for (times, micros) in times.iter_mut().zip(steps.into_iter().chain([rest, whole])) {
                times.push(micros);
            }
        }
        writer.close().unwrap();
        println!("\n| step of a commit of 32 | median us |\n|---|---|");
        let names = STEPS.iter().chain(&["processor alone (hash, plan)", "the whole commit"]);
        for (name, times) in names.zip(&mut times) {
            println!("| {name} | {:.0} |", median(times));
        }
    }
}

fn print_row(what: &str, ours: &mut [f64], theirs: &mut [f64]) {
    let (rate, fio_mb) = (median(ours), median(theirs));
    let mb = rate * RECORD_BYTES as f64 / 1e6;
    println!("| {what} | {rate:.0} | {mb:.0} | {fio_mb:.0} | {:.2} |", mb / fio_mb);
}
