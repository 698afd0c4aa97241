//! What a holding is a share of.

use super::bundle::{Bundle, KINDS, Totals};

/// Shares are measured against the cluster as it was a moment ago, so that one agent that comes or goes does not change
/// every share. This far it may have changed, as one part in so many.
const STALE_PARTS: u128 = 100;

/// The capacity of the cluster, as shares are measured against it.
#[derive(Clone, Debug, Default)]
pub(super) struct Scale {
    capacity: Totals,
    /// One over the capacity; 0 for a kind that does not count, or that nobody has.
    inverse: [f64; KINDS],
    excluded: [bool; KINDS],
}

impl Scale {
    pub(super) fn excluding(kinds: &[usize]) -> Self {
        let mut scale = Self::default();
        kinds.iter().filter(|&&kind| kind < KINDS).for_each(|&kind| scale.excluded[kind] = true);
        scale
    }

    pub(super) fn measure(&mut self, capacity: &Totals) {
        self.capacity = *capacity;
        self.inverse = std::array::from_fn(|kind| match capacity.0[kind] {
            0 => 0.0,
            _ if self.excluded[kind] => 0.0,
            amount => 1.0 / amount as f64,
        });
    }

    /// Is the cluster now noticeably another one?
    pub(super) fn is_stale(&self, capacity: &Totals) -> bool {
        self.capacity.0.iter().zip(&capacity.0).any(|(&then, &now)| {
            let change = then.abs_diff(now);
            change > 0 && change.saturating_mul(STALE_PARTS) >= then.min(now)
        })
    }

    pub(super) fn share(&self, held: &Totals) -> f64 {
        self.largest(&held.0, |amount| u64::try_from(amount).map_or(amount as f64, |small| small as f64))
    }

    /// The kind that is the largest part of the cluster, the first of several; `None` where nothing counts.
    pub(super) fn dominant(&self, held: &Totals) -> Option<usize> {
        let share = |kind: usize| held.0[kind] as f64 * self.inverse[kind];
        (0..KINDS).rev().filter(|&kind| share(kind) > 0.0).max_by(|&a, &b| share(a).total_cmp(&share(b)))
    }

    pub(super) fn share_of(&self, bundle: &Bundle) -> f64 {
        self.largest(&bundle.0, |amount| amount as f64)
    }

    fn largest<T: Copy>(&self, amounts: &[T; KINDS], number: impl Fn(T) -> f64) -> f64 {
        amounts
            .iter()
            .zip(&self.inverse)
            .fold(0.0, |most, (&amount, inverse)| most.max(number(amount) * inverse))
    }
}
