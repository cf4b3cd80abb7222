//! Class and day of issue as they were asked for: a put that says yes keeps the receipt so.

use super::{DAY, code, listed, open, path, run_expire, set_term, store};
use crate::policy::Term;
use crate::{Put, Reader};

#[test]
fn the_same_data_with_another_class_or_day_is_no_repetition() {
    let sim = store(8 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 1, Term::Years(10));
    let name = path("p");
    let plain = Put::new(&name, b"data");
    writer.put(&plain).unwrap();
    assert!(!writer.put(&plain).unwrap().is_new);
    let classed = Put { class: Some(1), ..plain.clone() };
    let dated = Put { issued_day: Some(DAY - 3), ..plain.clone() };
    for other in [&classed, &dated] {
        let error = writer.put(other).unwrap_err();
        assert_eq!(error.exit_code(), 8, "{error}");
        assert!(error.to_string().contains("class 0 and issued 2026-01-01"), "{error}");
    }
    writer.remove(&name).unwrap();
    writer.put(&plain).unwrap();
    let stored = writer.put(&Put { is_new_version: true, ..classed.clone() }).unwrap();
    assert_eq!((stored.version, stored.is_new), (2, true));
    // Now it is kept as asked: each of these is a repetition.
    for same in [&plain, &classed, &Put { issued_day: Some(DAY), ..classed.clone() }] {
        assert!(!writer.put(same).unwrap().is_new, "{same:?}");
    }
    assert_eq!(code(writer.remove(&name)), 8, "kept");
}

/// The clock of the writing guest falls back by years and is right again later.
#[test]
fn a_clock_that_fell_back_shortens_no_term() {
    for class in [0, 1] {
        let sim = store(8 << 20);
        let mut writer = open(&sim, DAY);
        set_term(&mut writer, class, Term::Years(10));
        writer.close().unwrap();
        let mut writer = open(&sim, DAY - 30 * 365);
        let name = path("p");
        let class = Some(u8::try_from(class).unwrap());
        writer.put(&Put { class, ..Put::new(&name, b"data") }).unwrap();
        let older = path("scanned");
        writer
            .put(&Put { class, issued_day: Some(DAY - 11 * 365 - 9), ..Put::new(&older, b"data") })
            .unwrap();
        writer.close().unwrap();
        let stat = Reader::new(sim.reader(), "sim").stat(&name).unwrap();
        assert_eq!(stat.header.issued_day, DAY, "the last day that was confirmed");
        let mut writer = open(&sim, DAY + 1);
        let (_, gone) = run_expire(&sim, &mut writer, None, 0, false).unwrap();
        assert_eq!((gone, listed(&sim)), (vec!["scanned".to_owned()], vec!["p".to_owned()]));
    }
}
