//! What the backend is meant to reach, and whether it did.

use crate::peers::{FIO, OWN, POLLING};
use crate::report::{Case, Figures, median, median_ratio};

/// One goal in one case.
struct Verdict {
    goal: String,
    measured: f64,
    is_met: bool,
}

/// Which side of a bound is good.
#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// All goals that the cases tell something about.
pub fn print(cases: &[Case]) {
    println!("\n### Goals\n\n| case | goal | measured | |\n|---|---|---|---|");
    for case in cases {
        for Verdict { goal, measured, is_met } in judge(case, cases) {
            let word = if is_met { "met" } else { "**missed**" };
            println!("| {} | {goal} | {measured:.2} | {word} |", case.name());
        }
    }
    let rounds = || cases.iter().flat_map(|case| &case.peers).flat_map(|(_, rounds)| rounds);
    let disturbed = rounds().filter(|figures| figures.disturbed > 0.05).count();
    println!(
        "\n{disturbed} of {} measurements were disturbed: others took more than 5 % of the processors",
        rounds().count()
    );
}

fn judge(case: &Case, all: &[Case]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let Some(own) = case.of(OWN) else { return verdicts };
    let daemon = case.best_storage_daemon();
    let in_memory = case.place == "tmpfs";
    let is_small =
        case.load.name.starts_with("4k random read") || case.load.name.starts_with("4k random write");
    let is_small = is_small && !case.load.is_extra();
    if let Some(daemon) = daemon.filter(|_| in_memory && is_small) {
        match (case.load.depth, case.pinned) {
            (32, pinned) => {
                let (faster, cheaper) = if pinned { (1.9, 0.6) } else { (3.0, 0.35) };
                verdicts.push(ratio(
                    "IOPS / best qemu-storage-daemon",
                    own,
                    daemon,
                    |f| f.iops,
                    Bound::AtLeast(faster),
                ));
                verdicts.push(ratio(
                    "CPU / best qemu-storage-daemon",
                    own,
                    daemon,
                    |f| f.cpu_us,
                    Bound::AtMost(cheaper),
                ));
            }
            (1, true) => {
                verdicts.push(ratio(
                    "IOPS / best qemu-storage-daemon",
                    own,
                    daemon,
                    |f| f.iops,
                    Bound::AtLeast(1.5),
                ));
                verdicts.push(ratio(
                    "CPU / best qemu-storage-daemon",
                    own,
                    daemon,
                    |f| f.cpu_us,
                    Bound::AtMost(1.0),
                ));
                if let Some(polling) = case.of(POLLING) {
                    verdicts.push(ratio(
                        "IOPS polling / best qemu-storage-daemon",
                        polling,
                        daemon,
                        |f| f.iops,
                        Bound::AtLeast(2.5),
                    ));
                }
            }
            _ => {}
        }
    }
    if !in_memory {
        if let Some(fio) = case.of(FIO) {
            verdicts.push(ratio("IOPS / fio", own, fio, |f| f.iops, Bound::AtLeast(0.95)));
        }
        if let Some(daemon) = daemon {
            verdicts.push(ratio(
                "IOPS / best qemu-storage-daemon",
                own,
                daemon,
                |f| f.iops,
                Bound::AtLeast(1.0),
            ));
            verdicts.push(ratio(
                "p99 / best qemu-storage-daemon",
                own,
                daemon,
                |f| f.percentiles_us[1],
                Bound::AtMost(1.0),
            ));
        }
    }
    if case.load.guests > 1 && !case.load.is_beside() {
        let alone = |one: &&Case| {
            (one.load.shape, one.load.depth, one.load.guests) == (case.load.shape, case.load.depth, 1)
                && one.load.queues == 1
                && (&one.place, one.pinned) == (&case.place, case.pinned)
        };
        if let Some(alone) = all.iter().find(alone).and_then(|one| one.of(OWN)) {
            verdicts.push(ratio("IOPS / one guest alone", own, alone, |f| f.iops, Bound::AtLeast(0.95)));
        }
        let least = median(own, |f| f.least_share);
        verdicts.push(verdict("part of the guest with fewer", least, Bound::AtLeast(0.45)));
    }
    let queues = f64::from(case.load.queues) * f64::from(u32::try_from(case.load.guests).unwrap());
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 KiB")]
    let mib = median(own, |f| f.memory_kib as f64) / 1024.0;
    verdicts.push(verdict("MiB of memory", mib, Bound::AtMost(16.0 + queues)));
    verdicts
}

fn ratio(what: &str, of: &[Figures], to: &[Figures], pick: fn(&Figures) -> f64, bound: Bound) -> Verdict {
    verdict(what, median_ratio(of, to, pick), bound)
}

fn verdict(what: &str, measured: f64, bound: Bound) -> Verdict {
    let (goal, is_met) = match bound {
        Bound::AtLeast(least) => (format!("{what} >= {least}"), measured >= least),
        Bound::AtMost(most) => (format!("{what} <= {most}"), measured <= most),
    };
    Verdict { goal, measured, is_met }
}
