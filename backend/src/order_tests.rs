use proptest::prelude::*;

use super::*;

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange { start, end }
}

fn now(admission: Admission) -> Ticket {
    match admission {
        Admission::Now(ticket) => ticket,
        Admission::Parked(_) => panic!("must not wait"),
    }
}

fn parked(admission: Admission) -> Ticket {
    match admission {
        Admission::Parked(ticket) => ticket,
        Admission::Now(_) => panic!("must wait"),
    }
}

#[test]
fn disjoint_writes_and_overlapping_reads_do_not_wait() {
    let mut order = Order::default();
    let tickets = [
        now(order.admit(&[range(0, 512)], Access::Exclusive, 1)),
        now(order.admit(&[range(512, 1024)], Access::Exclusive, 2)),
        now(order.admit(&[range(1024, 4096)], Access::Shared, 3)),
        now(order.admit(&[range(2048, 8192)], Access::Shared, 4)),
    ];
    let mut granted = Vec::new();
    for ticket in tickets {
        order.release(ticket, &mut granted);
    }
    assert!(granted.is_empty() && order.pending.is_empty());
}

#[test]
fn a_write_waits_for_every_earlier_read_and_blocks_every_later_one() {
    let mut order = Order::default();
    let first = now(order.admit(&[range(0, 4096)], Access::Shared, 1));
    let second = now(order.admit(&[range(2048, 6144)], Access::Shared, 2));
    let write = parked(order.admit(&[range(0, 8192)], Access::Exclusive, 3));
    let late_read = parked(order.admit(&[range(0, 512)], Access::Shared, 4));

    let mut granted = Vec::new();
    order.release(first, &mut granted);
    assert!(granted.is_empty());
    order.release(second, &mut granted);
    assert_eq!(granted, [3]);
    order.release(write, &mut granted);
    assert_eq!(granted, [3, 4]);
    order.release(late_read, &mut granted);
    assert!(order.pending.is_empty());
}

#[test]
fn all_ranges_of_a_request_are_admitted_together() {
    let mut order = Order::default();
    let both = now(order.admit(&[range(0, 512), range(4096, 4608)], Access::Exclusive, 1));
    let low = parked(order.admit(&[range(0, 512)], Access::Shared, 2));
    let high = parked(order.admit(&[range(4096, 4608)], Access::Shared, 3));
    let between = now(order.admit(&[range(512, 4096)], Access::Exclusive, 4));

    let mut granted = Vec::new();
    order.release(both, &mut granted);
    assert_eq!(granted, [2, 3]);
    for ticket in [low, high, between] {
        order.release(ticket, &mut granted);
    }
    assert!(order.pending.is_empty());
}

#[test]
fn rounding_out_covers_the_read_modify_write() {
    assert_eq!(range(513, 1023).rounded_out(512), range(512, 1024));
    assert_eq!(range(512, 1024).rounded_out(512), range(512, 1024));
    assert_eq!(range(1, u64::MAX - 1).rounded_out(4096).start, 0);
}

#[test]
fn rounding_in_stays_inside() {
    assert_eq!(range(1, 1024).rounded_in(512), range(512, 1024));
    assert_eq!(range(512, 1024).rounded_in(512), range(512, 1024));
    assert!(range(513, 1023).rounded_in(512).is_empty());
    assert!(range(100, 900).rounded_in(4096).is_empty());
}

proptest! {
    /// The smallest range of whole units around it and the largest inside it, for every range that a disk can have.
    #[test]
    fn rounding_agrees_with_wider_arithmetic(
        start in prop_oneof![0..20_000u64, (1 << 62)..(1u64 << 63), Just(i64::MAX as u64)],
        len in 0..40_000u64,
        align in prop::sample::select(vec![1u64, 512, 4096, 65536, 1 << 20]),
    ) {
        let own = range(start, (start + len).min(i64::MAX as u64));
        let (from, to, unit) = (u128::from(own.start), u128::from(own.end), u128::from(align));
        let out = own.rounded_out(align);
        prop_assert_eq!((u128::from(out.start), u128::from(out.end)), (from / unit * unit, to.div_ceil(unit) * unit));
        let inside = own.rounded_in(align);
        let first = from.div_ceil(unit) * unit;
        prop_assert_eq!((u128::from(inside.start), u128::from(inside.end)), (first, (to / unit * unit).max(first)));
    }
}

#[derive(Debug, Clone)]
enum Event {
    Admit { start: u64, len: u64, write: bool },
    Release { pick: usize },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..40u64, 1..12u64, any::<bool>()).prop_map(|(start, len, write)| Event::Admit { start, len, write }),
        2 => any::<usize>().prop_map(|pick| Event::Release { pick }),
    ]
}

/// What the table must say, computed the slow and obvious way: a request runs when no earlier
/// unreleased request conflicts with it.
#[derive(Default)]
struct Reference {
    requests: Vec<(u64, ByteRange, Access, bool)>,
}

impl Reference {
    fn may_run(&self, id: u64) -> bool {
        let &(_, own, access, _) = self.requests.iter().find(|r| r.0 == id).unwrap();
        self.requests.iter().filter(|r| r.0 < id).all(|&(_, other, other_access, _)| {
            let both_read = access == Access::Shared && other_access == Access::Shared;
            both_read || !(own.start..own.end).any(|byte| (other.start..other.end).contains(&byte))
        })
    }
}

proptest! {
    #[test]
    fn grants_exactly_what_the_naive_reference_grants(events in prop::collection::vec(event(), 1..200)) {
        let mut order = Order::default();
        let mut reference = Reference::default();
        let mut tickets: Vec<(u64, Ticket)> = Vec::new();
        let mut next_id = 0;
        for event in events {
            match event {
                Event::Admit { start, len, write } => {
                    let access = if write { Access::Exclusive } else { Access::Shared };
                    let own = range(start, start + len);
                    next_id += 1;
                    reference.requests.push((next_id, own, access, false));
                    let (runs, ticket) = match order.admit(&[own], access, next_id) {
                        Admission::Now(ticket) => (true, ticket),
                        Admission::Parked(ticket) => (false, ticket),
                    };
                    prop_assert_eq!(runs, reference.may_run(next_id));
                    reference.requests.last_mut().unwrap().3 = runs;
                    tickets.push((next_id, ticket));
                }
                Event::Release { pick } => {
                    let running: Vec<u64> = reference.requests.iter().filter(|r| r.3).map(|r| r.0).collect();
                    if running.is_empty() { continue; }
                    let id = running[pick % running.len()];
                    let at = tickets.iter().position(|t| t.0 == id).unwrap();
                    let (_, ticket) = tickets.swap_remove(at);
                    reference.requests.retain(|r| r.0 != id);
                    let mut granted = Vec::new();
                    order.release(ticket, &mut granted);
                    let mut expected: Vec<u64> = reference.requests.iter()
                        .filter(|r| !r.3 && reference.may_run(r.0)).map(|r| r.0).collect();
                    for r in &mut reference.requests { r.3 = r.3 || expected.contains(&r.0); }
                    granted.sort_unstable();
                    expected.sort_unstable();
                    prop_assert_eq!(granted, expected);
                }
            }
        }
        prop_assert_eq!(order.pending.len(), reference.requests.len());
    }
}
