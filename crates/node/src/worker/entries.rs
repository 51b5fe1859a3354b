//! Cache entries as they travel, and what a cache holds as it is reported.

use super::JobError;
use barycenter_protocol::control::Holding;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Entries that came one after the other. Their lengths are another device's word: the sum may be more than can be addressed here.
pub(super) fn split_entries<'a>(bytes: &'a [u8], lengths: &[u32]) -> Result<Vec<&'a [u8]>, JobError> {
    let total: u64 = lengths.iter().map(|&length| u64::from(length)).sum();
    if bytes.len() as u64 != total {
        return Err(JobError::Other(format!("cache entries of {total} bytes were announced, {} came", bytes.len())));
    }
    let mut rest = bytes;
    let mut split = |length: &u32| { let (entry, tail) = rest.split_at(*length as usize); rest = tail; entry };
    Ok(lengths.iter().map(&mut split).collect())
}

/// The taps that so many entries are of, from the first on.
pub(super) fn taps_of(first: u32, count: usize) -> Result<Range<u16>, JobError> {
    let end = u16::try_from(first as usize + count);
    let end = end.map_err(|_| JobError::Other(format!("{count} cache entries from tap {first} on were announced, which no model has")))?;
    Ok(first as u16..end)
}

/// Samples with the same contiguous taps, as ranges.
pub(super) fn holdings_of(contents: &[(u32, BTreeSet<u16>)]) -> Vec<Holding> {
    let mut by_taps: BTreeMap<(u32, u32), Vec<Range<u32>>> = BTreeMap::new();
    for (sample, taps) in contents {
        let mut runs: Vec<Range<u32>> = Vec::new();
        for &tap in taps {
            match runs.last_mut() {
                Some(run) if run.end == u32::from(tap) => run.end += 1,
                _ => runs.push(u32::from(tap)..u32::from(tap) + 1),
            }
        }
        for run in runs {
            let ranges = by_taps.entry((run.start, run.end)).or_default();
            match ranges.last_mut() {
                Some(range) if range.end == *sample => range.end += 1,
                _ => ranges.push(*sample..*sample + 1),
            }
        }
    }
    by_taps.into_iter().map(|((start, end), samples)| Holding { samples, taps: start..end }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_split_as_announced_or_refused() {
        assert_eq!(split_entries(&[1, 2, 3], &[1, 0, 2]).expect("they fit"), [&[1][..], &[], &[2, 3]]);
        // In a browser the sum of these is 3 again, if it is taken in 32 bits.
        for lengths in [&[1, 1][..], &[4], &[u32::MAX, 1, 3], &[u32::MAX; 7]] {
            assert!(split_entries(&[1, 2, 3], lengths).is_err_and(|error| error.to_string().contains("3 came")), "{lengths:?}");
        }
        assert_eq!(taps_of(3, 4).expect("few"), 3..7);
        assert!(taps_of(65_530, 6).is_err() && taps_of(u32::MAX, 1).is_err());
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "a holding of one range is one range")]
    fn holdings_join_neighbouring_samples_and_taps() {
        let contents = vec![(0, [0, 1, 2].into()), (1, [0, 1, 2].into()), (3, [0, 1, 2].into()), (4, [1, 3].into())];
        assert_eq!(
            holdings_of(&contents),
            vec![
                Holding { samples: vec![0..2, 3..4], taps: 0..3 },
                Holding { samples: vec![4..5], taps: 1..2 },
                Holding { samples: vec![4..5], taps: 3..4 },
            ]
        );
    }
}
