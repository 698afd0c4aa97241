//! Why a framework was offered what it was, in the allocator's own numbers.

use std::collections::BTreeMap;

use bulkhead_proto::v1::ResourceClass;

use super::{
    Allocator,
    bundle::{Bundle, Totals},
    refusals::Seen,
    roles::RoleSettings,
};
use crate::ids::UnixMs;

/// What stands between a framework and an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// The framework is not connected.
    NotConnected,
    /// It does not want this class.
    NotWanted,
    /// Too little is free there for any offer.
    NothingFree,
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
    /// What is free now, over all agents.
    pub free: Totals,
    /// What is kept free of that for guarantees, over all roles.
    pub kept_free: Totals,
    /// How many agents it would take as they are now.
    pub takes: u64,
    /// How many agents it would not, by the first reason.
    pub obstacles: BTreeMap<Obstacle, u64>,
}

impl Allocator {
    /// Explains a framework's place and looks at every agent for it; `None` for one that is not there.
    pub fn explain(&self, framework: u32, now: UnixMs) -> Option<Explanation> {
        self.wants(framework)?;
        let mut path: Vec<_> = self.tree.path(framework).map(|node| self.place(node)).collect();
        path.reverse();
        let (mut takes, mut obstacles) = (0, BTreeMap::new());
        for agent in (0..self.agents.len()).filter(|&a| self.agents[a].is_some()) {
            match self.obstacle(framework, u32::try_from(agent).unwrap_or(u32::MAX), now) {
                None => takes += 1,
                Some(obstacle) => *obstacles.entry(obstacle).or_default() += 1,
            }
        }
        Some(Explanation {
            policy: self.tree.policy().name().to_owned(),
            path,
            entitled: self.tree.entitled(framework),
            room: self.tree.room(framework, &self.free),
            free: self.free,
            kept_free: self.tree.kept_free().copied().unwrap_or_default(),
            takes,
            obstacles,
        })
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
            served_before,
            siblings,
            part_of_parent: self.tree.part_of_siblings(node),
        }
    }
}
