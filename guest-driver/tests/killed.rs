//! `receipt put --batch` killed at random moments: every path that it printed is there and right.
//! `RECEIPT_KILLS=n` sets how often (40 by default, 200 in CI).

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)] // a failed step of a test may panic anywhere

#[path = "support/child.rs"]
mod child;

use child::die_with_parent;
use receipt_store::{RawDevice, Reader, ReceiptPath};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

const FILES: usize = 400;

fn data(number: usize) -> Vec<u8> {
    let unit = format!("number {number}\n");
    unit.into_bytes().into_iter().cycle().take(100 + 300 * (number % 40)).collect()
}

#[test]
fn what_a_killed_put_has_printed_is_there() {
    let default = if std::env::var_os("CI").is_some() { 200 } else { 40 };
    let kills = std::env::var("RECEIPT_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    std::fs::File::create(&disk).unwrap().set_len(4 << 30).unwrap();
    let command = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_receipt"));
        command.arg("--device").arg(&disk).args(args).stdin(Stdio::null());
        die_with_parent(&mut command);
        command
    };
    assert!(command(&["format"]).output().unwrap().status.success());
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(&tree).unwrap();
    for number in 0..FILES {
        std::fs::write(tree.join(format!("{number:04}")), data(number)).unwrap();
    }
    let mut printed: Vec<(String, usize)> = Vec::new();
    let mut random: u64 = 88_172_645_463_325_252;
    let mut killed_in_flight = 0;
    for round in 0..kills {
        let prefix = format!("{round}/");
        let mut child = command(&["put", "--batch", tree.to_str().unwrap(), "--prefix", &prefix])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Killed a moment after a random number of lines.
        let (sender, receiver) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| sender.send(line).unwrap());
        });
        let wanted = usize::try_from(random % FILES as u64).unwrap();
        let mut lines: Vec<String> = receiver.iter().take(wanted).collect();
        std::thread::sleep(Duration::from_micros(random / 1000 % 3000));
        child.kill().unwrap();
        child.wait().unwrap();
        lines.extend(receiver.iter());
        reader.join().unwrap();
        killed_in_flight += usize::from(lines.len() < FILES);
        for line in lines {
            let name = line.rsplit('/').next().unwrap().to_owned();
            // A line that the kill cut off is no promise.
            if let Ok(number) = name.parse::<usize>()
                && name.len() == 4
            {
                printed.push((line, number));
            }
        }
        check(&disk, printed.iter().rev().take(FILES));
    }
    assert!(killed_in_flight * 4 > kills, "{killed_in_flight} of {kills} were killed before the end");
    assert!(printed.len() > kills, "{} paths were printed", printed.len());
    check(&disk, printed.iter());
    let output = command(&["verify"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    println!("{} paths printed by {kills} puts, {killed_in_flight} killed before the end", printed.len());
}

fn check<'a>(disk: &std::path::Path, printed: impl Iterator<Item = &'a (String, usize)>) {
    let reader = Reader::new(RawDevice::open_reader(disk).unwrap(), "disk");
    for (name, number) in printed {
        let receipt = reader.get(&ReceiptPath::new(name).unwrap()).unwrap();
        assert_eq!(receipt.data(), data(*number), "{name}");
    }
}
