//! The rules of the protocol by name. Tests remove one at a time, to see that the simulator notices; in every other build
//! [`Rule::holds`] is a constant.

/// What keeps receipts safe. The table in `docs/format.md` says what happens without each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A commit is flushed before an index page names it.
    CommitFlushes,
    /// A page goes to the slot that does not hold its newest version.
    OtherSlot,
    /// A record carries the hash of the header before.
    Chain,
    /// Epochs never fall along the log.
    EpochsRise,
    /// The checksum of a record header depends on the store.
    RecordsBound,
    /// The first record carries the identity of the store.
    Genesis,
    /// The head replays from the start of the commit that it is written with.
    HeadReplaysCommit,
    /// A miss searches the replay window.
    MissSearchesWindow,
    /// A miss reads the superblock again.
    MissReadsSuperblock,
    /// A miss reads the index page again behind the head.
    MissReadsAgain,
    /// A record has the sequence, generation and place that its entry says.
    EntryFits,
    /// Data is checked before it is handed out.
    DataFits,
    /// The checksum of data depends on its record.
    ChecksumBound,
    /// Where the checksum does not fit, the hash decides.
    HashDecides,
    /// One read that finds a torn slot is not trusted.
    TornReadTwice,
    /// Recovery takes a record only if its data is whole.
    RecoveryChecksData,
    /// Recovery mends what a torn write left behind the data: zeroes, and the checksum.
    RecoveryMends,
    /// Recovery flushes the pages before the head.
    RecoveryFlushes,
    /// Recovery writes a page again even if it shows the record.
    RecoveryRewrites,
    /// Recovery looks for entries behind a page whose spilled flag a crash may have taken back.
    RecoveryLooksBehind,
    /// What was applied before is not applied again.
    ReplayTwice,
    /// Closing flushes the pages before the head.
    ClosingFlushes,
    /// An unclean opening flushes before anything is built on what it read.
    OpeningFlushes,
    /// The new epoch is durable before a record carries it.
    EpochFlushed,
    /// The window begins at the epoch of the head page.
    WindowEpoch,
    /// The log is not cut before what the head has published.
    ProofHead,
    /// Nor before what the segment table knows.
    ProofTable,
    /// Nor before what an index page knows.
    ProofPage,
    /// Nor before the first record of a later commit.
    ProofCommit,
    /// What is put again is read before it is acknowledged as stored.
    StoredIsRead,
    /// A segment that the table calls free is looked at before it is taken.
    FreeIsChecked,
    /// Room for the Seal is always kept.
    SealRoom,
    /// Opening loads what the next Summary has to list.
    SummaryComplete,
    /// A writer that was replaced writes no more.
    Fenced,
    /// A writer looks whether it is still the last one before it appends.
    LeaseChecked,
    /// A commit that replaces a version flushes its pages before the acknowledgement.
    ReplacementFlushed,
    /// A repair gives up where index or table know more than the log.
    RepairKnowsEnd,
    /// A repair replaces a damaged index page only if every record of the log is accounted for.
    RepairIsCertain,
    /// A repair takes a damaged index page for one that was full.
    RepairLooksBehind,
    /// A repair writes and flushes the pages that are whole before it replaces damaged ones.
    RepairOrders,
    /// The flushes of a repair.
    RepairFlushes,
    /// A receipt is not removed before its term is over.
    TermKeeps,
    /// A hold keeps receipts from being removed.
    HoldKeeps,
    /// A clock far behind the last confirmed day ends no term.
    ClockIsConfirmed,
    /// The features of the store say that there are records of retention before the first is written.
    LifeFlagged,
    /// Receipts leave room for what makes room.
    RoomReserved,
    /// An erasure zeroes the data.
    EraseZeroes,
    /// What is erased lies before the replay position.
    EraseBeforeReplay,
    /// Recovery zeroes the data again.
    EraseRepeats,
    /// The data is durably zeroed before the erasure is acknowledged.
    ErasureFlushed,
    /// Zeroed data is whole only where an Erase record says so.
    EraseIsProven,
    /// The entries of a retired segment are durably gone before its room is discarded.
    EntriesFlushed,
    /// Recovery takes the entries of a retired segment out again.
    RetireRepeats,
    /// Recovery discards a retired segment only if nothing has opened it since.
    OnlyFreeDiscarded,
    /// A piece of a retired segment is discarded only if nothing has opened the segment since.
    DiscardLooks,
    /// Every record of a segment is looked at before it is retired.
    RetireLooks,
    /// A segment is retired only if it lies before the replay position.
    RetireBeforeReplay,
    /// A segment is not retired when a receipt in it was replaced or removed since it was looked at.
    RetireMovedAll,
    /// A list goes on with what expiry copies out of segments that it has not listed.
    ListFollowsCopies,
    /// An erasure reaches what copies have left in room that is not used.
    EraseReachesCopies,
    /// A record that hides another one is not retired before that one.
    RetireHidesNothing,
    /// A check that finds records where the table says free reads the Retire records before it believes them.
    RetireIsRead,
    /// Both slots show policy and holds before a segment is free that may have told of them.
    RetireShowsTwice,
    /// A check compares policy and holds with the log.
    RetentionIsChecked,
    /// A repair applies what the replay window says of policy, holds and erasures.
    RepairAppliesWindow,
    /// What Retire records in a retired segment say is said again.
    RetireCarries,
}

#[cfg(any(test, feature = "sim"))]
thread_local! {
    static REMOVED: std::cell::Cell<&'static [Rule]> = const { std::cell::Cell::new(&[]) };
}

impl Rule {
    /// Whether the rule is in force. Always, except in a test that removed it.
    #[cfg(not(any(test, feature = "sim")))]
    #[inline(always)]
    #[must_use]
    pub const fn holds(self) -> bool {
        true
    }

    /// Whether the rule is in force. Always, except in a test that removed it.
    #[cfg(any(test, feature = "sim"))]
    #[must_use]
    pub fn holds(self) -> bool {
        !REMOVED.get().contains(&self)
    }

    /// Removes these rules in this thread; none = puts all of them back.
    #[cfg(any(test, feature = "sim"))]
    pub fn remove(rules: &'static [Self]) {
        REMOVED.set(rules);
    }
}
