//! Each rule of retention, erasure, expiry and growth is removed in turn, and the test that is named must notice. The table is in `docs/format.md`;
//! `RECEIPT_RULES=1000 cargo test -p receipt --lib each_rule_of_life -- --nocapture` also counts the schedules that go wrong.

use super::life_tests as tests;
use super::life_world;
use super::schedule_tests::{number, run_seeds};
use crate::rules::Rule;

type Row = (&'static [Rule], &'static str, fn());

const ROWS: &[Row] = &[
    (
        &[Rule::TermKeeps],
        "terms and holds",
        tests::a_term_a_hold_and_a_change_of_policy_decide_what_rm_may_do,
    ),
    (
        &[Rule::HoldKeeps],
        "terms and holds",
        tests::a_term_a_hold_and_a_change_of_policy_decide_what_rm_may_do,
    ),
    (
        &[Rule::ClockIsConfirmed],
        "terms and holds",
        tests::a_term_a_hold_and_a_change_of_policy_decide_what_rm_may_do,
    ),
    (
        &[Rule::LifeFlagged],
        "terms and holds",
        tests::a_term_a_hold_and_a_change_of_policy_decide_what_rm_may_do,
    ),
    (&[Rule::RoomReserved], "a full disk", tests::a_full_disk_still_takes_removals_and_expiry),
    (
        &[Rule::EraseZeroes],
        "an erased receipt",
        tests::an_erased_receipt_is_gone_from_the_disk_and_provably_so,
    ),
    (
        &[Rule::ErasureFlushed],
        "an erased receipt",
        tests::an_erased_receipt_is_gone_from_the_disk_and_provably_so,
    ),
    (
        &[Rule::EraseIsProven],
        "an erased receipt",
        tests::an_erased_receipt_is_gone_from_the_disk_and_provably_so,
    ),
    (
        &[Rule::EraseRepeats],
        "a crash at every operation of an erasure",
        tests::a_crash_at_every_operation_of_an_erasure,
    ),
    (
        &[Rule::EraseBeforeReplay],
        "a crash at every operation of a put and its erasure",
        tests::a_crash_at_every_operation_of_a_put_and_its_erasure,
    ),
    (
        &[Rule::EntriesFlushed],
        "a crash at every operation of expiry",
        tests::a_crash_at_every_operation_of_expiry,
    ),
    (
        &[Rule::RetireRepeats],
        "a crash at every operation of expiry",
        tests::a_crash_at_every_operation_of_expiry,
    ),
    (
        &[Rule::OnlyFreeDiscarded],
        "a segment opened again",
        tests::a_retired_segment_that_was_opened_again_is_not_discarded,
    ),
    (
        &[Rule::DiscardLooks],
        "a segment opened between two discards",
        tests::a_segment_that_is_opened_between_two_discards_keeps_what_is_stored_there,
    ),
    (
        &[Rule::RetireMovedAll],
        "a version replaced while expiry runs",
        tests::a_version_that_is_replaced_while_expiry_runs_is_kept,
    ),
    (&[Rule::ListFollowsCopies], "a list over expiry", tests::a_list_over_expiry_leaves_nothing_out),
    (
        &[Rule::EraseReachesCopies],
        "an erasure of what was copied",
        tests::an_erasure_reaches_what_copies_have_left,
    ),
    (&[Rule::RetireLooks], "mixed classes", tests::mixed_classes_free_their_room_by_copying_what_stays),
    (
        &[Rule::RetireBeforeReplay],
        "a segment that recovery needs",
        tests::a_segment_that_recovery_needs_is_not_retired,
    ),
    (
        &[Rule::RetireHidesNothing],
        "what was removed does not come back",
        tests::what_was_removed_does_not_come_back_when_the_record_of_its_removal_expires,
    ),
    (
        &[Rule::RetireShowsTwice],
        "a damaged hold page whose record has gone",
        tests::either_slot_tells_of_a_hold_whose_record_has_gone,
    ),
    (
        &[Rule::RetentionIsChecked],
        "damaged pages of policy and holds",
        tests::damaged_slots_of_policy_and_holds_are_found_and_mended_from_the_log,
    ),
    (
        &[Rule::RepairAppliesWindow],
        "a hold in the replay window of a repair",
        tests::a_repair_keeps_what_the_replay_window_says_of_holds,
    ),
    (
        &[Rule::RetireIsRead],
        "a repair of the segment table",
        tests::a_repair_of_the_segment_table_brings_nothing_back,
    ),
    (
        &[Rule::RetireCarries],
        "segments go round",
        tests::segments_whose_receipts_have_expired_are_free_again_and_the_chain_is_bridged,
    ),
];

#[test]
fn each_rule_of_life_that_is_removed_is_noticed() {
    let mut unnoticed = Vec::new();
    for (rules, name, test) in ROWS {
        Rule::remove(rules);
        let is_noticed = std::panic::catch_unwind(test).is_err();
        Rule::remove(&[]);
        if let Some(count) = number("RECEIPT_RULES") {
            let bad = run_seeds(0..count, rules, life_world::run);
            let first =
                bad.first().map(|(seed, faults)| format!("seed {seed}: {faults}")).unwrap_or_default();
            eprintln!("| {rules:?} | {} | {} | {first:.200}", bad.len(), if is_noticed { name } else { "" });
        }
        if !is_noticed {
            unnoticed.push(rules);
        }
    }
    assert!(unnoticed.is_empty(), "nobody noticed that these rules were removed: {unnoticed:?}");
}
