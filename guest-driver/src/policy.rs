//! How long receipts are kept: classes with their terms (page 3) and holds by path prefix (pages 4 to 15).
//!
//! The end of a term is computed from class, day of issue and policy whenever it is asked for, so a change of the policy changes what was
//! stored before. Invariants: the pages show every Policy and Hold record up to their `applied_seq`; a page changes only by such a record.

use crate::day;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::layout::{PAGE_HOLDS_FIRST, PAGE_HOLDS_LAST, PAGE_POLICY, PATH_BYTES_MAX, SLOT_BODY_BYTES};
use crate::page::{Page, PageId, PageKind, read_page};
use crate::path::ID_PREFIX;
use crate::rules::Rule;
use crate::superblock::Superblock;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Retention classes of a store.
pub const CLASS_COUNT: usize = 32;
/// The clock may be this many days after the last day that somebody confirmed.
pub const CLOCK_DAYS_MAX: u32 = 31;

/// A class on disk.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ClassRaw {
    /// 0 no term, 1 years from the day of issue, 2 years from the end of the year of issue, 3 for ever.
    pub mode: u8,
    /// Zero.
    pub reserved: u8,
    /// Years.
    pub years: U16,
}

/// Body of the policy page, and the path field of a Policy record.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PolicyRaw {
    /// Last day that somebody confirmed, days since 1970.
    pub confirmed_day: U32,
    /// Zero.
    pub reserved: U32,
    /// Classes by number.
    pub classes: [ClassRaw; CLASS_COUNT],
}
const _: () = assert!(size_of::<PolicyRaw>() == 136);

/// A hold on a hold page, and the path field of a Hold record; the prefix follows.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HoldRaw {
    /// Last day of the hold, days since 1970; 0 = until it is released.
    pub until_day: U32,
    /// Bytes of the prefix.
    pub prefix_len: U16,
    /// Record: 1 = the hold ends. Page: 0.
    pub is_release: u8,
    /// Page number of the hold.
    pub page: u8,
}
const _: () = assert!(size_of::<HoldRaw>() == 8);

/// How long the receipts of a class are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Term {
    /// May be removed at any time and never expires.
    #[default]
    None,
    /// So many years from the day of issue.
    Years(u16),
    /// So many years from the end of the year of issue.
    YearEnd(u16),
    /// May never be removed.
    Forever,
}

impl std::fmt::Display for Term {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("no term"),
            Self::Years(years) => write!(f, "{years} years from the day of issue"),
            Self::YearEnd(years) => write!(f, "{years} years from the end of the year of issue"),
            Self::Forever => f.write_str("for ever"),
        }
    }
}

/// When a receipt may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// At any time, by `rm` only.
    NoTerm,
    /// After this day.
    Until(u32),
    /// Never.
    Forever,
}

/// The terms of all classes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Last day that somebody confirmed: what the clock says may be at most [`CLOCK_DAYS_MAX`] days later. 0 = none.
    pub confirmed_day: u32,
    /// Terms by class.
    pub terms: [Term; CLASS_COUNT],
}

impl Policy {
    /// The bytes of page and record.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let classes = self.terms.map(|term| {
            let (mode, years) = match term {
                Term::None => (0, 0),
                Term::Years(years) => (1, years),
                Term::YearEnd(years) => (2, years),
                Term::Forever => (3, 0),
            };
            ClassRaw { mode, reserved: 0, years: U16::new(years) }
        });
        let raw = PolicyRaw { confirmed_day: U32::new(self.confirmed_day), reserved: U32::ZERO, classes };
        raw.as_bytes().to_vec()
    }

    /// Reads page or record; `None` for a mode that this program does not know.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (raw, _) = PolicyRaw::ref_from_prefix(bytes).ok()?;
        let mut policy = Self { confirmed_day: raw.confirmed_day.get(), ..Self::default() };
        for (term, class) in policy.terms.iter_mut().zip(raw.classes) {
            *term = match class.mode {
                0 => Term::None,
                1 => Term::Years(class.years.get()),
                2 => Term::YearEnd(class.years.get()),
                3 => Term::Forever,
                _ => return None,
            };
        }
        Some(policy)
    }

    /// The policy of its page.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a mode that this program does not know.
    pub fn of_page(page: &Page) -> Result<Self> {
        Self::decode(page.body.as_slice())
            .ok_or_else(|| Error::Corrupt("policy page: unknown mode: use a newer `receipt`".to_owned()))
    }

    /// The term of a class; numbers that no policy can have are kept for ever.
    #[must_use]
    pub fn term(&self, class: u8) -> Term {
        self.terms.get(usize::from(class)).copied().unwrap_or(Term::Forever)
    }

    /// When a receipt of a class may go.
    #[must_use]
    pub fn kept(&self, class: u8, issued_day: u32) -> Kept {
        match self.term(class) {
            Term::None => Kept::NoTerm,
            Term::Years(years) => Kept::Until(day::add_years(issued_day, years)),
            Term::YearEnd(years) => Kept::Until(day::year_end(issued_day, years)),
            Term::Forever => Kept::Forever,
        }
    }

    /// What counts as today when the clock says `clock_day`: no more than somebody has confirmed lately, so that a clock that is wrong
    /// ends no term.
    #[must_use]
    pub fn today(&self, clock_day: u32) -> u32 {
        let is_near = clock_day <= self.confirmed_day.saturating_add(CLOCK_DAYS_MAX);
        if is_near || !Rule::ClockIsConfirmed.holds() { clock_day } else { self.confirmed_day }
    }
}

/// What may not be removed, whatever its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Paths that begin with this (any bytes, not only whole parts).
    pub prefix: Vec<u8>,
    /// Last day; `None` = until it is released.
    pub until_day: Option<u32>,
}

impl Hold {
    /// The bytes of page and record.
    #[must_use]
    pub fn encode(&self, is_release: bool, page: u8) -> Vec<u8> {
        let raw = HoldRaw {
            until_day: U32::new(self.until_day.unwrap_or_default()),
            prefix_len: U16::new(u16::try_from(self.prefix.len()).unwrap_or(u16::MAX)),
            is_release: u8::from(is_release),
            page,
        };
        [raw.as_bytes(), &self.prefix].concat()
    }

    /// Reads one hold from the front of `bytes`; returns it with its raw form and what follows.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<(Self, HoldRaw, &[u8])> {
        let (raw, rest) = HoldRaw::ref_from_prefix(bytes).ok()?;
        let len = usize::from(raw.prefix_len.get());
        let prefix = rest.get(..len).filter(|_| len <= PATH_BYTES_MAX)?;
        let until_day = Some(raw.until_day.get()).filter(|day| *day != 0);
        Some((Self { prefix: prefix.to_vec(), until_day }, *raw, rest.get(len..).unwrap_or_default()))
    }

    /// Whether the hold is in force for a path.
    #[must_use]
    pub fn covers(&self, path: &[u8], today: u32) -> bool {
        path.starts_with(&self.prefix) && self.until_day.is_none_or(|until| today <= until)
    }
}

/// The holds of one page.
///
/// # Errors
/// [`Error::Corrupt`] when they are not whole.
pub fn decode_holds(page: &Page) -> Result<Vec<Hold>> {
    let mut rest = page.body.as_slice();
    let mut holds = Vec::new();
    for _ in 0..page.count {
        let (hold, _, after) =
            Hold::decode(rest).ok_or_else(|| Error::Corrupt("hold page: a hold is cut off".to_owned()))?;
        holds.push(hold);
        rest = after;
    }
    Ok(holds)
}

/// Bytes that holds take on a page.
#[must_use]
pub fn holds_len(holds: &[Hold]) -> usize {
    holds.iter().map(|hold| size_of::<HoldRaw>() + hold.prefix.len()).sum()
}

/// Writes the holds of one page; false when they do not fit.
#[must_use]
pub fn encode_holds(holds: &[Hold], page_no: u64, page: &mut Page) -> bool {
    let Ok(count) = u16::try_from(holds.len()) else { return false };
    if holds_len(holds) > SLOT_BODY_BYTES {
        return false;
    }
    page.body.fill(0);
    let number = u8::try_from(page_no).unwrap_or_default();
    let bytes: Vec<u8> = holds.iter().flat_map(|hold| hold.encode(false, number)).collect();
    page.body[..bytes.len()].copy_from_slice(&bytes);
    page.count = count;
    true
}

/// The pages of policy and holds with their kinds.
pub fn retention_pages() -> impl Iterator<Item = (u64, PageKind)> {
    let holds = (PAGE_HOLDS_FIRST..=PAGE_HOLDS_LAST).map(|page_no| (page_no, PageKind::Hold));
    std::iter::once((PAGE_POLICY, PageKind::Policy)).chain(holds)
}

/// Policy and holds as they are now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Terms.
    pub policy: Policy,
    /// Holds with their pages.
    pub holds: Vec<(u64, Hold)>,
}

/// Whether a path is the record of an id. Such a one outlives every term: if it went before its receipt, another receipt could get the id.
fn is_id(path: &[u8]) -> bool {
    path.starts_with(ID_PREFIX.as_bytes())
}

impl Retention {
    /// Reads policy and holds: 13 device reads, none where the store has never had any.
    ///
    /// # Errors
    /// A device error or [`Error::Corrupt`].
    pub fn read(device: &dyn Device, superblock: &Superblock) -> Result<Self> {
        Self::load(superblock, |page_no, kind| {
            let (page, _) =
                read_page(device, PageId { store_id: Some(superblock.store_id()), page_no, kind })?;
            // The other slot may have known a hold.
            if page.is_damaged { Err(damaged(page_no)) } else { Ok(page) }
        })
    }

    /// As [`Retention::read`], from pages that `load` knows.
    ///
    /// # Errors
    /// [`Error::Corrupt`], or what `load` returns.
    pub fn load(
        superblock: &Superblock,
        mut load: impl FnMut(u64, PageKind) -> Result<Page>,
    ) -> Result<Self> {
        let mut retention = Self::default();
        if !superblock.has_life {
            return Ok(retention);
        }
        retention.policy = Policy::of_page(&load(PAGE_POLICY, PageKind::Policy)?)?;
        for page_no in PAGE_HOLDS_FIRST..=PAGE_HOLDS_LAST {
            let holds = decode_holds(&load(page_no, PageKind::Hold)?)?;
            retention.holds.extend(holds.into_iter().map(|hold| (page_no, hold)));
        }
        Ok(retention)
    }

    /// The hold on a path, if there is one.
    #[must_use]
    pub fn hold_on(&self, path: &[u8], today: u32) -> Option<&Hold> {
        self.holds.iter().map(|(_, hold)| hold).find(|hold| hold.covers(path, today))
    }

    /// Whether a receipt may be removed on the day that the clock says.
    ///
    /// # Errors
    /// [`Error::Held`] or [`Error::Kept`].
    pub fn check_removal(&self, path: &[u8], class: u8, issued_day: u32, clock_day: u32) -> Result<()> {
        let today = self.policy.today(clock_day);
        let name = || String::from_utf8_lossy(path).into_owned();
        if is_id(path) {
            return Err(Error::Refused(format!("{}: an id names its receipt for ever", name())));
        }
        if let Some(hold) = self.hold_on(path, today)
            && Rule::HoldKeeps.holds()
        {
            let prefix = String::from_utf8_lossy(&hold.prefix).into_owned();
            let until = hold.until_day.map_or("it is released".to_owned(), day::text);
            return Err(Error::Held { path: name(), prefix, until });
        }
        let until = match self.policy.kept(class, issued_day) {
            Kept::NoTerm => return Ok(()),
            Kept::Until(until) if today > until => return Ok(()),
            Kept::Until(until) => day::text(until),
            Kept::Forever => "for ever".to_owned(),
        };
        if !Rule::TermKeeps.holds() {
            return Ok(());
        }
        let clock = if today == clock_day {
            String::new()
        } else {
            format!(
                "; the clock says {}, but the last day that was confirmed is {}: `receipt expire --today` confirms one",
                day::text(clock_day),
                day::text(today)
            )
        };
        Err(Error::Kept { path: name(), class, until, clock })
    }

    /// Whether the term of a receipt is over and nothing holds it.
    #[must_use]
    pub fn is_expired(&self, path: &[u8], class: u8, issued_day: u32, today: u32) -> bool {
        if is_id(path) {
            return false;
        }
        let is_over = match self.policy.kept(class, issued_day) {
            Kept::Until(until) => today > until || !Rule::TermKeeps.holds(),
            Kept::NoTerm | Kept::Forever => false,
        };
        is_over && (self.hold_on(path, today).is_none() || !Rule::HoldKeeps.holds())
    }
}

fn damaged(page_no: u64) -> Error {
    Error::Corrupt(format!("page {page_no} (policy or holds) has a damaged slot"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_and_holds_round_trip() {
        let mut policy = Policy { confirmed_day: 20_000, ..Policy::default() };
        policy.terms[1] = Term::Years(10);
        policy.terms[2] = Term::YearEnd(5);
        policy.terms[31] = Term::Forever;
        assert_eq!(Policy::decode(&policy.encode()), Some(policy.clone()));
        let mut unknown = policy.encode();
        unknown[8] = 9;
        assert_eq!(Policy::decode(&unknown), None);
        let holds = [
            Hold { prefix: b"2026/".to_vec(), until_day: None },
            Hold { prefix: Vec::new(), until_day: Some(7) },
        ];
        let mut page = Page::empty();
        assert!(encode_holds(&holds, 4, &mut page));
        assert_eq!(decode_holds(&page).unwrap(), holds);
        page.count = 3;
        page.body[holds_len(&holds) + 4..][..2].copy_from_slice(&2000_u16.to_le_bytes());
        assert!(decode_holds(&page).is_err(), "a prefix that no path has");
        let many = vec![Hold { prefix: vec![b'x'; 1000], until_day: None }; 5];
        assert!(!encode_holds(&many, 4, &mut page));
    }

    #[test]
    fn a_term_is_a_function_of_class_day_and_policy() {
        let issued = day::parse("2026-11-23").unwrap();
        let mut retention = Retention::default();
        retention.policy.confirmed_day = day::parse("2036-11-20").unwrap();
        let refused = |r: &Retention, class, date: &str| {
            r.check_removal(b"a/b", class, issued, day::parse(date).unwrap()).is_err()
        };
        assert!(!refused(&retention, 1, "2026-11-23"), "no term");
        retention.policy.terms[1] = Term::Years(10);
        assert!(refused(&retention, 1, "2036-11-23"));
        assert!(!refused(&retention, 1, "2036-11-24"));
        assert!(retention.is_expired(b"a/b", 1, issued, issued + 3654));
        assert!(!retention.is_expired(b"a/b", 1, issued, issued + 3653));
        assert!(!retention.is_expired(b"a/b", 0, issued, u32::MAX), "no term, no expiry");
        retention.policy.terms[1] = Term::YearEnd(10);
        assert!(refused(&retention, 1, "2036-11-24"), "the law has changed");
        retention.policy.terms[1] = Term::Years(3);
        assert!(!refused(&retention, 1, "2030-11-24"), "and again");
        assert!(refused(&retention, 32, "2036-11-24"), "a class that no policy can have");
        retention.holds.push((4, Hold { prefix: b"a/".to_vec(), until_day: Some(issued + 3660) }));
        assert!(refused(&retention, 1, "2036-11-24"), "on hold");
        assert!(!retention.is_expired(b"a/b", 1, issued, issued + 3660));
        assert!(retention.is_expired(b"a/b", 1, issued, issued + 3661));
        assert!(retention.is_expired(b"b", 1, issued, issued + 3660));
    }

    #[test]
    fn a_clock_far_ahead_ends_no_term_and_no_hold() {
        let issued = day::parse("2026-11-23").unwrap();
        let mut retention = Retention::default();
        retention.policy.terms[1] = Term::Years(1);
        retention.policy.confirmed_day = issued;
        let error = retention.check_removal(b"a", 1, issued, issued + 40_000).unwrap_err();
        assert_eq!(error.exit_code(), 8);
        assert!(error.to_string().contains("confirmed"), "{error}");
        assert_eq!(retention.policy.today(issued + CLOCK_DAYS_MAX), issued + CLOCK_DAYS_MAX);
        assert_eq!(retention.policy.today(0), 0, "a clock in the past ends nothing either");
    }
}
