//! Each rule of the protocol is removed in turn, and the tests must notice. The counts are in `docs/format.md`;
//! `RECEIPT_RULES=10000 cargo test -p receipt --lib each_rule -- --nocapture` prints them anew;
//! `RECEIPT_RULE=Repair` only the rules with that in their names.

use super::schedule_tests::{number, run_seeds};
use super::{
    checksum_tests, damage_tests, exhaustive_tests, fault_tests, repair_case_tests, repair_tests,
    repair_world_tests, review_tests, store_tests, world,
};
use crate::rules::Rule;

/// Removed rules, the schedules within which the simulator finds it (0 = only a directed test does).
type Row = (&'static [Rule], u64);

const ROWS: &[Row] = &[
    (&[Rule::CommitFlushes], 100),
    (&[Rule::OtherSlot], 100),
    (&[Rule::Chain, Rule::RecordsBound], 100),
    (&[Rule::EpochsRise], 0),
    (&[Rule::Chain, Rule::EpochsRise], 100),
    (&[Rule::Genesis, Rule::RecordsBound], 100),
    (&[Rule::RecordsBound], 0),
    (&[Rule::MissReadsSuperblock], 0),
    (&[Rule::HeadReplaysCommit], 100),
    (&[Rule::MissSearchesWindow], 400),
    (&[Rule::MissReadsAgain], 0),
    (&[Rule::EntryFits], 0),
    (&[Rule::DataFits], 0),
    (&[Rule::ChecksumBound], 0),
    (&[Rule::HashDecides], 0),
    (&[Rule::TornReadTwice], 0),
    (&[Rule::RecoveryChecksData], 100),
    (&[Rule::RecoveryMends], 0),
    (&[Rule::RecoveryFlushes], 2000),
    (&[Rule::RecoveryRewrites], 0),
    (&[Rule::RecoveryLooksBehind], 0),
    (&[Rule::ReplayTwice], 100),
    (&[Rule::ClosingFlushes], 0),
    (&[Rule::OpeningFlushes, Rule::EpochFlushed], 0),
    (&[Rule::EpochFlushed], 0),
    (&[Rule::WindowEpoch], 0),
    (&[Rule::ProofHead], 0),
    (&[Rule::ProofTable], 0),
    (&[Rule::ProofPage], 0),
    (&[Rule::ProofCommit], 0),
    (&[Rule::FreeIsChecked], 0),
    (&[Rule::StoredIsRead], 0),
    (&[Rule::SealRoom], 100),
    (&[Rule::SummaryComplete], 100),
    (&[Rule::Fenced, Rule::LeaseChecked], 100),
    (&[Rule::LeaseChecked], 0),
    (&[Rule::ReplacementFlushed], 0),
    (&[Rule::RepairKnowsEnd], 0),
    (&[Rule::RepairIsCertain], 0),
    (&[Rule::RepairLooksBehind], 0),
    (&[Rule::RepairOrders], 0),
    (&[Rule::RepairFlushes], 0),
];

/// Tests that also notice, by name.
const DIRECTED: &[(&str, fn())] = &[
    ("a crash at every operation", exhaustive_tests::a_crash_at_every_operation_keeps_what_was_acknowledged),
    (
        "a crash at every operation of recovery",
        exhaustive_tests::a_crash_at_every_operation_of_recovery_changes_nothing,
    ),
    (
        "a device that fails once",
        exhaustive_tests::a_device_that_fails_once_stops_the_writer_and_loses_nothing,
    ),
    ("rot in data or header", fault_tests::rot_in_data_or_header_is_corrupt_and_verify_names_the_path),
    ("a rotten index page", fault_tests::a_rotten_index_page_is_never_not_found),
    ("a log that goes on is not cut", fault_tests::a_log_that_is_known_to_go_on_is_not_cut),
    ("every kind of proof", fault_tests::every_kind_of_proof_keeps_a_damaged_log_from_being_cut),
    ("an entry that names another record", fault_tests::an_entry_that_names_another_record_is_not_believed),
    (
        "what a dead writer left is not pending",
        fault_tests::what_a_dead_writer_left_behind_the_log_is_not_pending,
    ),
    ("one torn read is not trusted", crate::page::tests::one_torn_read_is_not_trusted),
    ("counts of reads", store_tests::a_get_is_three_reads_cold_two_warm_and_one_by_locator),
    ("counts of a commit", store_tests::one_group_commit_is_one_sequential_write_and_one_flush),
    ("counts of opening", store_tests::opening_after_a_clean_close_is_one_write_and_one_flush),
    ("a crash while closing", review_tests::a_crash_while_closing_loses_nothing),
    ("what is behind torn data", review_tests::what_a_torn_write_leaves_behind_the_data_is_zeroed),
    ("a writer that was away", review_tests::a_writer_that_was_away_does_not_write_over_the_other),
    ("a replaced version stays away", review_tests::a_replaced_version_does_not_come_back_with_a_crash),
    (
        "a spilled flag that a crash takes back",
        crate::remove_tests::a_crash_that_takes_the_spilled_flag_back_leaves_no_entry_behind,
    ),
    ("an older store is not found", damage_tests::nothing_of_an_older_store_is_found_by_path_or_locator),
    ("a segment in use is not free", damage_tests::a_segment_in_use_is_not_taken_for_a_free_one),
    ("damage that is put again", damage_tests::what_is_put_again_is_acknowledged_only_if_it_can_be_read),
    ("a wrong checksum", checksum_tests::a_wrong_checksum_takes_no_receipt_away),
    (
        "data and checksum of another record",
        checksum_tests::data_with_a_checksum_of_another_record_is_refused,
    ),
    ("a checksum that was torn off", checksum_tests::recovery_mends_a_checksum_that_was_torn_off),
    ("an older store on the same disk", store_tests::an_older_store_on_the_same_disk_is_gone),
];

/// Those of repairs, for the rules of repairs.
const DIRECTED_REPAIR: &[(&str, fn())] = &[
    ("a bucket that spills", repair_case_tests::a_bucket_that_spills_is_mended_from_behind),
    (
        "what a lost record may have removed",
        repair_case_tests::what_a_lost_record_may_have_removed_is_not_brought_back,
    ),
    (
        "an index that knows more than the log",
        repair_case_tests::an_index_that_knows_more_than_the_log_stops_a_repair,
    ),
    ("a window that cannot be applied", repair_case_tests::a_window_that_cannot_be_applied_is_mended),
    ("every damaged page", repair_tests::every_damaged_page_is_named_and_mended),
    (
        "a crash at every operation of a repair",
        repair_tests::a_crash_at_every_operation_of_a_repair_loses_nothing,
    ),
];

/// Whether a rule is one of repairs: then the seeded repairs and their tests must notice.
fn is_of_repair(rules: &[Rule]) -> bool {
    rules.iter().any(|rule| format!("{rule:?}").starts_with("Repair"))
}

/// The tests that fail without the rules; only the first unless all are wanted.
fn directed(rules: &'static [Rule], is_all: bool) -> Vec<&'static str> {
    Rule::remove(rules);
    let tests = if is_of_repair(rules) { DIRECTED_REPAIR } else { DIRECTED };
    let failing = tests.iter().filter(|(_, test)| std::panic::catch_unwind(test).is_err());
    let names = failing.map(|(name, _)| *name).take(if is_all { tests.len() } else { 1 }).collect();
    Rule::remove(&[]);
    names
}

#[test]
fn each_rule_that_is_removed_is_noticed() {
    let table = number("RECEIPT_RULES");
    let mut unnoticed = Vec::new();
    let only = std::env::var("RECEIPT_RULE").unwrap_or_default();
    for (rules, within) in ROWS.iter().filter(|(rules, _)| format!("{rules:?}").contains(&only)) {
        let run = if is_of_repair(rules) { repair_world_tests::run_repair } else { world::run };
        let bad = run_seeds(0..table.unwrap_or(*within), rules, run);
        let names =
            if table.is_some() || bad.is_empty() { directed(rules, table.is_some()) } else { Vec::new() };
        if table.is_some() {
            let first =
                bad.first().map(|(seed, faults)| format!("seed {seed}: {faults}")).unwrap_or_default();
            eprintln!("| {rules:?} | {} | {} | {:.200}", bad.len(), names.join(", "), first);
        }
        if bad.is_empty() && names.is_empty() {
            unnoticed.push(rules);
        }
    }
    assert!(unnoticed.is_empty(), "nobody noticed that these rules were removed: {unnoticed:?}");
}
