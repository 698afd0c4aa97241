//! Roles: their names, their weights, their quotas.

use std::collections::BTreeMap;

use bulkhead_proto::ids::{BadId, check_id};

use super::bundle::{Bundle, KINDS, kind_name};

/// The deepest role: deeper ones make every holding costlier to count, and no organisation is that deep.
pub const MAX_ROLE_DEPTH: usize = 8;

/// Why a text cannot name a role, written as the second half of a sentence that begins with the role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRole {
    /// Too many parts; this many.
    #[error("has {0} parts between slashes; at most {MAX_ROLE_DEPTH} are allowed")]
    TooDeep(usize),
    /// A part that cannot be one.
    #[error("has the part {part:?}, which {why} (a role is written like team or team/web)")]
    Part {
        /// Which.
        part: String,
        /// What is wrong with it.
        why: BadId,
    },
}

/// Checks that a text can name a role: parts that can each be an id, with slashes between them.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn check_role(role: &str) -> Result<(), BadRole> {
    let depth = role.split('/').count();
    if depth > MAX_ROLE_DEPTH {
        return Err(BadRole::TooDeep(depth));
    }
    role.split('/').try_for_each(|part| {
        check_id(part).map_err(|why| BadRole::Part { part: part.chars().take(100).collect(), why })
    })
}

/// How much a role counts beside its siblings, in millionths, so that sums of weights are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u64);

/// A number that is no weight.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "weight {0} is not one: use a number from 0.001 to 1000000; to keep a role from offers, give it a limit of 0"
)]
pub struct BadWeight(pub f64);

impl PartialEq for BadWeight {
    /// What is not a number is the same as itself here.
    fn eq(&self, other: &Self) -> bool {
        self.0.total_cmp(&other.0).is_eq()
    }
}

impl Weight {
    /// What a role has that nobody gave another.
    pub const ONE: Self = Self(1_000_000);

    /// The weight as a number.
    pub fn get(self) -> f64 {
        self.0 as f64 / 1e6
    }

    pub(super) fn millionths(self) -> u64 {
        self.0
    }
}

impl TryFrom<f64> for Weight {
    type Error = BadWeight;

    fn try_from(weight: f64) -> Result<Self, BadWeight> {
        if !(0.001..=1e6).contains(&weight) {
            return Err(BadWeight(weight));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1e3 to 1e12")]
        let millionths = (weight * 1e6).round() as u64;
        Ok(Self(millionths))
    }
}

/// What an operator says of a role.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoleSettings {
    /// Twice the weight, twice the share.
    pub weight: Weight,
    /// For policies that have an order of precedence: the larger goes first.
    pub priority: i32,
    /// What the role and all below it hold at most; [`u64::MAX`] bounds nothing.
    pub limit: Bundle,
    /// What is kept free for the role and all below it until they hold it.
    pub guarantee: Bundle,
}

impl Default for RoleSettings {
    fn default() -> Self {
        Self { weight: Weight::ONE, priority: 0, limit: Bundle::UNBOUNDED, guarantee: Bundle::default() }
    }
}

/// Settings of roles that cannot be kept together.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BadQuota {
    /// The name is none.
    #[error("role {role:?} {why}")]
    Role {
        /// Which.
        role: String,
        /// What is wrong.
        why: BadRole,
    },
    /// A role may not hold what it is guaranteed.
    #[error(
        "role {role:?} is guaranteed {guarantee} {kind} and limited to {limit}, by itself or by a role above it: \
         raise the limit or lower the guarantee"
    )]
    AboveLimit {
        /// Which.
        role: String,
        /// Of which kind.
        kind: &'static str,
        /// Its guarantee.
        guarantee: u64,
        /// The limit.
        limit: u64,
    },
    /// The roles below a role are together guaranteed more than it may hold.
    #[error(
        "the roles below {role:?} are guaranteed {guarantee} {kind} together, and it is limited to {limit}: raise the \
         limit or lower their guarantees"
    )]
    SumAboveLimit {
        /// Which.
        role: String,
        /// Of which kind.
        kind: &'static str,
        /// The sum.
        guarantee: u128,
        /// The limit.
        limit: u64,
    },
}

/// Can all of these hold at once, on a cluster that is large enough?
///
/// # Errors
/// The first role, in alphabetical order, whose guarantee does not fit under a limit.
pub fn check_roles(roles: &BTreeMap<String, RoleSettings>) -> Result<(), BadQuota> {
    for (role, settings) in roles {
        check_role(role).map_err(|why| BadQuota::Role { role: role.clone(), why })?;
        for kind in 0..KINDS {
            check_kind(roles, role, settings, kind)?;
        }
    }
    Ok(())
}

fn check_kind(
    roles: &BTreeMap<String, RoleSettings>,
    role: &str,
    settings: &RoleSettings,
    kind: usize,
) -> Result<(), BadQuota> {
    let guarantee = settings.guarantee.0[kind];
    let limit = ancestors(role)
        .filter_map(|above| roles.get(above))
        .map(|s| s.limit.0[kind])
        .min()
        .unwrap_or(u64::MAX);
    let kind_name = kind_name(kind);
    if guarantee > limit {
        return Err(BadQuota::AboveLimit { role: role.to_owned(), kind: kind_name, guarantee, limit });
    }
    let (sum, limit) = (promised_below(roles, role, kind), settings.limit.0[kind]);
    if sum > u128::from(limit) {
        return Err(BadQuota::SumAboveLimit {
            role: role.to_owned(),
            kind: kind_name,
            guarantee: sum,
            limit,
        });
    }
    Ok(())
}

/// What the roles right below promise: each its own guarantee or that of the roles below it, whichever is more.
fn promised_below(roles: &BTreeMap<String, RoleSettings>, role: &str, kind: usize) -> u128 {
    let below = format!("{role}/");
    let mut children = BTreeMap::<&str, u128>::new();
    for name in roles.range(below.clone()..).map(|(name, _)| name).take_while(|n| n.starts_with(&below)) {
        let end = name[below.len()..].find('/').map_or(name.len(), |at| below.len() + at);
        children.entry(&name[..end]).or_default();
    }
    let of_child = |child: &str| {
        let own = roles.get(child).map_or(0, |s| u128::from(s.guarantee.0[kind]));
        own.max(promised_below(roles, child, kind))
    };
    children.keys().map(|child| of_child(child)).sum()
}

/// A role and those above it, itself first.
fn ancestors(role: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(role), |r| r.rsplit_once('/').map(|(above, _)| above))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn role_names_are_parts_between_slashes() {
        for good in ["default", "a/b/c", "team-1/web.x", "*".replace('*', "any").as_str()] {
            assert_eq!(check_role(good), Ok(()), "{good}");
        }
        for bad in ["", "/", "a/", "/a", "a//b", "a/../b", "a b", "*", "a/.hidden", "a\\b"] {
            assert!(matches!(check_role(bad), Err(BadRole::Part { .. })), "{bad:?}");
        }
        assert_eq!(check_role(&["a"; 9].join("/")), Err(BadRole::TooDeep(9)));
    }

    #[test]
    fn weights_are_numbers_above_nothing() {
        assert_eq!(Weight::try_from(2.5).map(Weight::get), Ok(2.5));
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e-9, 1e9, -0.0] {
            assert!(Weight::try_from(bad).unwrap_err().to_string().contains("limit of 0"), "{bad}");
        }
    }

    #[test]
    fn guarantees_have_to_fit_under_limits() {
        let cpu = |amount| {
            let mut bundle = Bundle::default();
            bundle.0[0] = amount;
            bundle
        };
        let limit = |amount| {
            let mut bundle = Bundle::UNBOUNDED;
            bundle.0[0] = amount;
            RoleSettings { limit: bundle, ..RoleSettings::default() }
        };
        let promise = |amount| RoleSettings { guarantee: cpu(amount), ..RoleSettings::default() };
        let check = |roles: &[(&str, RoleSettings)]| {
            check_roles(&roles.iter().map(|(name, s)| ((*name).to_owned(), *s)).collect())
        };
        assert_eq!(check(&[("a", limit(5)), ("a/b", promise(3)), ("a/c/d", promise(2))]), Ok(()));
        let sum = check(&[("a", limit(5)), ("a/b", promise(3)), ("a/c/d", promise(3)), ("ab", promise(9))]);
        assert!(
            matches!(&sum, Err(BadQuota::SumAboveLimit { role, guarantee: 6, .. }) if role == "a"),
            "{sum:?}"
        );
        let one = check(&[("a", limit(5)), ("a/b/c", promise(6))]);
        assert!(one.unwrap_err().to_string().contains("cpu_milli"));
        let own = RoleSettings { guarantee: cpu(2), ..limit(1) };
        assert!(matches!(check(&[("a", own)]), Err(BadQuota::AboveLimit { .. })));
        assert!(matches!(check(&[("a//b", promise(0))]), Err(BadQuota::Role { .. })));
    }
}
