//! The record of an id outlives every term: an id that went before its receipt could be given to another one.

use super::*;
use crate::Change;

#[test]
fn an_id_stays_with_its_receipt_whatever_expires() {
    let sim = store(8 << 20);
    let mut writer = open(&sim, DAY);
    set_term(&mut writer, 0, Term::Years(1));
    let (id, own, other) = (path(".id/aaaa"), path("2026/A.png"), path("2027/B.png"));
    let give = |writer: &mut Writer<SimWriter>, receipt: &ReceiptPath, data: &[u8], id_data: &[u8]| {
        let put = Put { is_new_version: true, ..Put::new(receipt, data) };
        writer.commit_groups(&[&[Change::Put(put), Change::Put(Put::new(&id, id_data))]]).unwrap()
    };
    assert!(give(&mut writer, &own, b"A1", b"{A}").iter().flatten().count() == 2);
    writer.close().unwrap();
    // A corrected version half a year later keeps the receipt for longer than the record of its id is old.
    let mut writer = open(&sim, DAY + 180);
    assert!(give(&mut writer, &own, b"A2", b"{A}").iter().flatten().count() == 2);
    writer.hold(&Hold { prefix: b"2026/".to_vec(), until_day: None }).unwrap();
    writer.close().unwrap();
    let mut writer = open(&sim, DAY + 400);
    let (_, gone) = run_expire(&sim, &mut writer, Some(DAY + 400), 30, false).unwrap();
    assert_eq!(gone, [""; 0]);
    let refused = give(&mut writer, &other, b"B1", b"{B}");
    assert!(matches!(refused[1], Err(Error::Exists { .. })), "{refused:?}");
    assert!(matches!(writer.remove(&id), Err(Error::Refused(_))));
    let reader = Reader::new(sim.reader_of_now(), "sim");
    assert_eq!(reader.get(&id).unwrap().data(), b"{A}");
    assert_eq!(reader.get(&own).unwrap().data(), b"A2");
    assert!(matches!(reader.get(&other), Err(Error::NotFound { .. })));
}
