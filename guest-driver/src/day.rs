//! Days since 1970 as dates of the Gregorian calendar, and the ends of terms.

use crate::error::{Error, Result};

/// Days of 400 years.
const ERA_DAYS: u32 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_SHIFT: u32 = 719_468;
/// Milliseconds of a day.
pub const DAY_MS: u64 = 86_400_000;

/// The day of a time in milliseconds since 1970.
#[must_use]
pub fn day_of_ms(ms: u64) -> u32 {
    u32::try_from(ms / DAY_MS).unwrap_or(u32::MAX)
}

/// Year, month and day of a day since 1970.
#[must_use]
pub fn civil(day: u32) -> (u32, u32, u32) {
    let shifted = u64::from(day) + u64::from(EPOCH_SHIFT);
    let (era, in_era) = (shifted / u64::from(ERA_DAYS), shifted % u64::from(ERA_DAYS));
    let year_of_era = (in_era - in_era / 1460 + in_era / 36_524 - in_era / 146_096) / 365;
    let day_of_year = in_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    (small(year), small(month), small(day_of_month))
}

/// The day since 1970 of a date; days before 1970 are 0, and days beyond the end of a month those after it.
#[must_use]
pub fn day_of(year: u32, month: u32, day_of_month: u32) -> u32 {
    let year = u64::from(year) - u64::from(month <= 2).min(u64::from(year));
    let (era, year_of_era) = (year / 400, year % 400);
    let month_index = u64::from(if month > 2 { month - 3 } else { month + 9 });
    let day_of_year = (153 * month_index + 2) / 5 + u64::from(day_of_month.max(1)) - 1;
    let in_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let day = (era * u64::from(ERA_DAYS) + in_era).saturating_sub(u64::from(EPOCH_SHIFT));
    u32::try_from(day).unwrap_or(u32::MAX)
}

/// The same date so many years later; the day after a 29th of February that is not there is the 1st of March.
#[must_use]
pub fn add_years(day: u32, years: u16) -> u32 {
    let (year, month, day_of_month) = civil(day);
    day_of(year.saturating_add(u32::from(years)), month, day_of_month)
}

/// The last day of the year that begins so many years later.
#[must_use]
pub fn year_end(day: u32, years: u16) -> u32 {
    day_of(civil(day).0.saturating_add(u32::from(years)), 12, 31)
}

/// `YYYY-MM-DD`.
#[must_use]
pub fn text(day: u32) -> String {
    let (year, month, day_of_month) = civil(day);
    format!("{year:04}-{month:02}-{day_of_month:02}")
}

/// Reads `YYYY-MM-DD`, from 1970 to 9999.
///
/// # Errors
/// [`Error::Usage`] says what is wrong.
pub fn parse(date: &str) -> Result<u32> {
    let bad = || Error::Usage(format!("`{date}` is no date from 1970-01-01 to 9999-12-31: YYYY-MM-DD"));
    let mut parts = date.split('-');
    let mut number = |digits: usize| {
        let part = parts.next().filter(|part| part.len() == digits)?;
        part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse::<u32>().ok())?
    };
    let (Some(year), Some(month), Some(day_of_month)) = (number(4), number(2), number(2)) else {
        return Err(bad());
    };
    let day = day_of(year, month.clamp(1, 12), day_of_month);
    // A date that does not exist is another one when it is written back.
    if parts.next().is_some() || year < 1970 || civil(day) != (year, month, day_of_month) {
        return Err(bad());
    }
    Ok(day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_400_years_is_a_date_and_back() {
        let mut last = (1969, 12, 31);
        for day in 0..ERA_DAYS {
            let (year, month, day_of_month) = civil(day);
            assert_eq!(day_of(year, month, day_of_month), day);
            assert!((year, month, day_of_month) > last, "{last:?}");
            assert_eq!(parse(&text(day)).unwrap(), day);
            last = (year, month, day_of_month);
        }
        assert_eq!(text(0), "1970-01-01");
        assert_eq!(text(20_780), "2026-11-23");
        assert_eq!(text(11_016), "2000-02-29");
    }

    #[test]
    fn terms_end_on_anniversaries_and_at_the_end_of_years() {
        let ends = |date: &str, years| {
            let day = parse(date).unwrap();
            (text(add_years(day, years)), text(year_end(day, years)))
        };
        assert_eq!(ends("2026-11-23", 10), ("2036-11-23".into(), "2036-12-31".into()));
        assert_eq!(ends("2024-02-29", 1), ("2025-03-01".into(), "2025-12-31".into()));
        assert_eq!(ends("2024-02-29", 4), ("2028-02-29".into(), "2028-12-31".into()));
        assert!(add_years(u32::MAX, u16::MAX) >= u32::MAX - 1 || add_years(u32::MAX, u16::MAX) > 1_000_000);
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for bad in [
            "",
            "2026",
            "2026-1-01",
            "2026-13-01",
            "2026-00-10",
            "2026-02-29",
            "2026-02-30",
            "1969-12-31",
            "2026-01-01-",
            "2026-01-00",
            "20é6-01-01",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
