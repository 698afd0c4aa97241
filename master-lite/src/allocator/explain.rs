//! Why a framework was offered what it was, in the allocator's own numbers; and how roles stand.

use std::collections::BTreeMap;

use bulkhead_proto::v1::ResourceClass;

use super::{
    Allocator,
    bundle::{Bundle, Totals, kind_name},
    refusals::Seen,
    roles::RoleSettings,
};
use crate::ids::UnixMs;

/// What stands between a framework and an agent, the farthest from an offer first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// It does not want this class.
    NotWanted,
    /// Too little is free there for any offer.
    NothingFree,
    /// The framework is not connected.
    NotConnected,
    /// Less is free than its minimum.
    BelowMinimum,
    /// It refused the agent, and the refusal is not over.
    Refused,
    /// A limit of its role or of one above leaves too little.
    Limit,
    /// What is free is kept for the guarantees of other roles.
    KeptFree,
}

/// A node of the tree, beside its siblings.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The role, or for the last one the role that the framework is in.
    pub role: String,
    /// Is this the place of all frameworks of the role together, beside the roles below it?
    pub is_leaf: bool,
    /// Is it the framework itself?
    pub is_framework: bool,
    /// Weight, priority, limit and guarantee.
    pub settings: RoleSettings,
    /// What it and all below it hold.
    pub held: Totals,
    /// The largest part of the cluster that this is.
    pub dominant_share: f64,
    /// The kind of which it is that; empty where it is nothing.
    pub dominant_kind: &'static str,
    /// How many siblings are served before it.
    pub served_before: usize,
    /// How many siblings contend, itself included.
    pub siblings: usize,
    /// Its part of what its parent is entitled to.
    pub part_of_parent: f64,
}

/// Why a framework was offered what it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// The policy's name.
    pub policy: String,
    /// From the topmost role down to the framework.
    pub path: Vec<Place>,
    /// The part of the cluster that it is entitled to.
    pub entitled: f64,
    /// What quotas leave for it; `None` where none bounds it.
    pub room: Option<Bundle>,
    /// What there is, over all agents.
    pub capacity: Totals,
    /// What is free of it now.
    pub free: Totals,
    /// What is kept free of that for guarantees, over all roles.
    pub kept_free: Totals,
}

/// A role, as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct RoleStanding {
    /// Which.
    pub role: String,
    /// What an operator said of it; `None` where nobody said anything.
    pub settings: Option<RoleSettings>,
    /// What it and all below it hold.
    pub held: Totals,
    /// The largest part of the cluster that this is.
    pub dominant_share: f64,
    /// The kind of which it is that; empty where it is nothing.
    pub dominant_kind: &'static str,
    /// How many frameworks are right in it.
    pub frameworks: u32,
}

impl Allocator {
    /// Explains a framework's place; `None` for one that is not there. [`Self::obstacle`] says the rest, agent by agent.
    pub fn explain(&self, framework: u32) -> Option<Explanation> {
        self.wants(framework)?;
        let mut path: Vec<_> = self.tree.path(framework).map(|node| self.place(node)).collect();
        path.reverse();
        Some(Explanation {
            policy: self.tree.policy().name().to_owned(),
            path,
            entitled: self.tree.entitled(framework),
            room: self.tree.room(framework, &self.free),
            capacity: self.capacity,
            free: self.free,
            kept_free: self.tree.kept_free().copied().unwrap_or_default(),
        })
    }

    /// Roles that somebody said something of, that have frameworks, or that are above such a role; by name.
    pub fn roles(&self) -> Vec<RoleStanding> {
        let stands = |(role, node): (&str, u32)| {
            let held = self.tree.held(node);
            RoleStanding {
                role: role.to_owned(),
                settings: self.tree.said_of(role),
                held: *held,
                dominant_share: self.tree.scale().share(held),
                dominant_kind: self.dominant_kind(held),
                frameworks: self.tree.frameworks_in(node),
            }
        };
        let mut roles: Vec<_> = self.tree.roles().map(stands).collect();
        roles.sort_unstable_by(|a, b| a.role.cmp(&b.role));
        roles
    }

    /// What was said of roles, by name.
    pub fn settings(&self) -> BTreeMap<String, RoleSettings> {
        let said = |(role, _): (&str, u32)| Some((role.to_owned(), self.tree.said_of(role)?));
        self.tree.roles().filter_map(said).collect()
    }

    /// What was said of a role; `None` where nobody said anything.
    pub fn settings_of(&self, role: &str) -> Option<RoleSettings> {
        self.tree.said_of(role)
    }

    /// When all that a framework refuses of an agent is over; `None` where it refuses nothing.
    pub fn refused_until(&self, framework: u32, agent: u32, now: UnixMs) -> Option<UnixMs> {
        self.agents.get(super::at(agent))?.as_ref()?.refusals.until(framework, now)
    }

    fn dominant_kind(&self, held: &Totals) -> &'static str {
        self.tree.scale().dominant(held).map_or("", kind_name)
    }

    /// What keeps this agent from this framework now; `None` where it takes it. Of several obstacles, of both classes, the
    /// one that is nearest to an offer.
    pub fn obstacle(&self, framework: u32, agent: u32, now: UnixMs) -> Option<Obstacle> {
        let of = |class| self.obstacle_to(framework, agent, class, now);
        let firm = of(ResourceClass::Guaranteed)?;
        Some(firm.max(of(ResourceClass::Revocable)?))
    }

    fn obstacle_to(&self, framework: u32, agent: u32, class: ResourceClass, now: UnixMs) -> Option<Obstacle> {
        let Some(state) = self.agents.get(super::at(agent)).and_then(Option::as_ref) else {
            return Some(Obstacle::NothingFree);
        };
        let pot = state.free.of_class(class);
        let Some(wants) = self.wants(framework) else { return Some(Obstacle::NotConnected) };
        let Some(minimum) = wants.minimum(class) else { return Some(Obstacle::NotWanted) };
        if !pot.amounts.is_worth_offering(class) {
            return Some(Obstacle::NothingFree);
        }
        if !self.is_connected(framework) {
            return Some(Obstacle::NotConnected);
        }
        if !pot.contains(minimum) {
            return Some(Obstacle::BelowMinimum);
        }
        if state.refusals.seen(framework, class, &pot, now) == Seen::Refused {
            return Some(Obstacle::Refused);
        }
        let fits = |room: Option<Bundle>| {
            room.is_none_or(|room| {
                let allowed = pot.at_most(&room);
                allowed.amounts.is_worth_offering(class) && allowed.contains(minimum)
            })
        };
        if !fits(self.tree.limit_room(framework)) {
            return Some(Obstacle::Limit);
        }
        (!fits(self.tree.room(framework, &self.free))).then_some(Obstacle::KeptFree)
    }

    fn place(&self, node: u32) -> Place {
        let (served_before, siblings) = self.tree.place_among_siblings(node);
        Place {
            role: self.tree.role_of(node).to_owned(),
            is_leaf: self.tree.is_leaf(node),
            is_framework: self.tree.is_framework(node),
            settings: self.tree.settings(node),
            held: *self.tree.held(node),
            dominant_share: self.tree.scale().share(self.tree.held(node)),
            dominant_kind: self.dominant_kind(self.tree.held(node)),
            served_before,
            siblings,
            part_of_parent: self.tree.part_of_siblings(node),
        }
    }
}
