//! What runs inside the two guests of `tests/bench.sh method`: one static program, every way of passing receipts, one at a time or eight.
//!
//!     method-load serve LISTEN BYTES                                  the issuer of the HTTP peers: receipts, and paths by id
//!     method-load put PEER WHERE FIRST COUNT BYTES THREADS            stores COUNT receipts, prints one line of JSON
//!     method-load get PEER WHERE FIRST COUNT BYTES THREADS            reads them
//!     method-load front PEER WHERE LISTEN BYTES                       an HTTP server that answers receipts which it gets from the peer
//!     method-load show PEER WHERE LISTEN COUNT BYTES                  gets each path that it is told, and answers
//!     method-load issue PEER WHERE SHOW FIRST COUNT BYTES             stores each receipt, tells its path, waits for the answer

mod get;
mod http;
mod meter;
mod put;
mod receipts;
mod relay;

use get::Getter;
use meter::Meter;
use put::Putter;
use receipts::Receipts;
use std::time::Instant;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["serve", listen, bytes] => relay::serve(listen, number(bytes)),
        ["put", peer, place, first, count, bytes, threads] => {
            let receipts = Receipts::new(number(bytes));
            let putter = Putter::open(peer, place);
            work([first, count, threads], |ids| {
                let mut connection = putter.connect();
                ids.map(|id| timed(|| connection.put(id, &receipts.get(id)))).collect()
            });
            putter.close();
        }
        ["get", peer, place, first, count, bytes, threads] => {
            let receipts = Receipts::new(number(bytes));
            let (start, count_of) = (number(first), number(count));
            let getter = Getter::open(peer, place, start..start + count_of);
            work([first, count, threads], |ids| {
                let mut connection = getter.connect();
                ids.map(|id| timed(|| connection.get(id, |data| receipts.check(id, data)))).collect()
            });
        }
        ["front", peer, place, listen, bytes] => {
            let _ = number(bytes);
            relay::front(&Getter::open(peer, place, 0..0), listen);
        }
        ["show", peer, place, listen, count, bytes] => {
            let getter = Getter::open(peer, place, 0..0);
            relay::show(&getter, listen, number(count), &Receipts::new(number(bytes)));
        }
        ["issue", peer, place, show, first, count, bytes] => {
            let receipts = Receipts::new(number(bytes));
            let putter = Putter::open(peer, place);
            relay::issue(&putter, show, number(first), number(count), &receipts);
            putter.close();
        }
        _ => panic!("see the head of main.rs for the arguments, not {args:?}"),
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text} is no number"))
}

/// Microseconds that `run` takes.
fn timed(run: impl FnOnce()) -> u64 {
    let start = Instant::now();
    run();
    u64::try_from(start.elapsed().as_micros()).unwrap()
}

/// Divides the ids among threads and prints what the meter has seen. Each thread gets its connection before its first receipt.
fn work(
    [first, count, threads]: [&&str; 3],
    run: impl Fn(std::iter::StepBy<std::ops::Range<u64>>) -> Vec<u64> + Sync,
) {
    let (first, count, threads) = (number(first), number(count), number(threads));
    let meter = Meter::start();
    let latencies = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| {
                let ids = (first + thread..first + count).step_by(usize::try_from(threads).unwrap());
                let run = &run;
                scope.spawn(move || run(ids))
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    meter.print(latencies);
}
