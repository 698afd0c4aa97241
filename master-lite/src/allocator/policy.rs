//! Who goes first among siblings: the part of the allocator that an organisation may replace.

use super::bundle::Totals;

/// A role or a framework, beside its siblings.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    /// The role; of a framework the role that it is in.
    pub role: &'a str,
    /// Is it a framework?
    pub is_framework: bool,
    /// What it and everything below it hold, offers included.
    pub held: &'a Totals,
    /// The largest part of the cluster that it holds of any kind that counts, 0 to 1.
    pub dominant_share: f64,
    /// How much it counts; 1 where nobody said otherwise.
    pub weight: f64,
    /// Its order of precedence; 0 where nobody said otherwise.
    pub priority: i32,
}

/// A place in the order; the smallest is served first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rank {
    /// Decides first. A fair share is one among siblings of the same tier.
    pub tier: i64,
    /// Decides within a tier. Negative numbers count as 0, what is not a number as infinity.
    pub need: f64,
}

/// An order among siblings.
///
/// The allocator keeps the order up to date itself: a policy is asked once for each standing that changes. It sees one
/// sibling at a time, and has to give the same rank for the same standing. Quotas, refusals, minima and the turns
/// among equals are the same under every policy.
pub trait Policy: Send {
    /// What the configuration calls it.
    fn name(&self) -> &str;

    /// Where it stands.
    fn rank(&self, standing: &Standing<'_>) -> Rank;
}

/// Dominant resource fairness: whoever has the smallest dominant share for its weight.
#[derive(Clone, Copy, Debug, Default)]
pub struct Drf;

impl Policy for Drf {
    fn name(&self) -> &str {
        "drf"
    }

    fn rank(&self, standing: &Standing<'_>) -> Rank {
        Rank { tier: 0, need: standing.dominant_share / standing.weight }
    }
}

/// Strict precedence: roles of a higher priority get all they take before those of a lower; equals as in [`Drf`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Priority;

impl Policy for Priority {
    fn name(&self) -> &str {
        "priority"
    }

    fn rank(&self, standing: &Standing<'_>) -> Rank {
        Rank { tier: -i64::from(standing.priority), ..Drf.rank(standing) }
    }
}
