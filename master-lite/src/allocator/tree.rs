//! The tree of roles and frameworks, with the siblings of each node in the policy's order.
//!
//! Every role has two kinds of children: the roles below it, and one *leaf* (weight 1) that its own frameworks hang
//! under. A node is in its parent's order of a class of offers while it *contends* for them: a framework while it is
//! connected and wants them, any other node while something below it contends and its limit leaves enough for an offer. Whatever changes a node's holdings changes
//! those of its ancestors: an update costs the depth of the role times the logarithm of the number of siblings.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use bulkhead_proto::v1::ResourceClass;

use super::{
    bundle::{Bundle, KINDS, Totals},
    policy::{Policy, Standing},
    roles::RoleSettings,
    scale::Scale,
};

pub(super) const ROOT: u32 = 0;

/// A place in the order of siblings; the smallest is first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// A guarantee that is not met yet comes before every policy.
    pub(super) is_satisfied: bool,
    pub(super) tier: i64,
    /// The bits of a number that is not negative are in its order.
    need_bits: u64,
    /// Among equals, whoever was served longest ago.
    turn: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Role,
    Leaf,
    /// For offers of which classes it waits.
    Framework {
        waits: [bool; 2],
    },
}

/// What is kept free for a node.
#[derive(Clone, Debug, Default)]
struct Need {
    /// The sum over the children.
    below: Totals,
    /// What its own guarantee lacks, or the sum over the children, whichever is more.
    total: Totals,
}

struct Node {
    what: What,
    role: Arc<str>,
    parent: u32,
    /// Children of all kinds, contending or not.
    population: u32,
    leaf: Option<u32>,
    settings: Option<Box<RoleSettings>>,
    held: Totals,
    need: Option<Box<Need>>,
    turn: u64,
    key: Option<Key>,
    /// For which classes it contends.
    contends: [bool; 2],
    /// Those that contend, by class.
    order: [BTreeSet<(Key, u32)>; 2],
    /// Sums of their weights, in millionths, by tier.
    weights: BTreeMap<i64, u64>,
    /// Did its limit keep something back since it last had more room?
    pinched: Cell<bool>,
}

impl Node {
    fn new(what: What, role: Arc<str>, parent: u32) -> Self {
        Self {
            what,
            role,
            parent,
            population: 0,
            leaf: None,
            settings: None,
            held: Totals::default(),
            need: None,
            turn: 0,
            key: None,
            contends: [false; 2],
            order: [BTreeSet::new(), BTreeSet::new()],
            weights: BTreeMap::new(),
            pinched: Cell::new(false),
        }
    }

    fn limit_left(&self) -> Option<Bundle> {
        let limit = &self.settings.as_ref()?.limit;
        (*limit != Bundle::UNBOUNDED).then(|| self.held.left_of(limit))
    }

    /// What its guarantee lacks.
    fn lacks(&self) -> Bundle {
        let guarantee = self.settings.as_ref().map(|s| s.guarantee).unwrap_or_default();
        self.held.left_of(&guarantee)
    }

    fn weight_millionths(&self) -> u64 {
        self.settings.as_ref().map_or(1_000_000, |s| s.weight.millionths())
    }

    /// How much of what its guarantee lacks is not needed by the roles below it anyway.
    fn extra(&self) -> Bundle {
        let below = self.need.as_ref().map(|n| n.below).unwrap_or_default();
        Totals::from(&self.lacks()).beyond(&below)
    }
}

/// See the [module's documentation](self).
pub(super) struct Tree {
    nodes: Vec<Node>,
    vacant: Vec<u32>,
    roles: HashMap<Arc<str>, u32>,
    policy: Box<dyn Policy>,
    scale: Scale,
    turns: u64,
    guarantees: bool,
    /// Nodes below which a limit has more room than it had when it last kept something back.
    eased: Vec<u32>,
}

impl Tree {
    pub(super) fn new(policy: Box<dyn Policy>, scale: Scale) -> Self {
        Self {
            nodes: vec![Node::new(What::Role, "".into(), ROOT)],
            vacant: Vec::new(),
            roles: HashMap::new(),
            policy,
            scale,
            turns: 0,
            guarantees: false,
            eased: Vec::new(),
        }
    }

    pub(super) fn policy(&self) -> &dyn Policy {
        &*self.policy
    }

    pub(super) fn scale(&self) -> &Scale {
        &self.scale
    }

    // What is in the tree.

    pub(super) fn add_framework(&mut self, role: &str) -> u32 {
        let role = self.role(role);
        let leaf = self.nodes[at(role)].leaf.unwrap_or_else(|| {
            let leaf = self.add(What::Leaf, self.nodes[at(role)].role.clone(), role);
            self.nodes[at(role)].leaf = Some(leaf);
            leaf
        });
        let name = self.nodes[at(leaf)].role.clone();
        self.add(What::Framework { waits: [false; 2] }, name, leaf)
    }

    /// Removes a framework, and the roles that nothing needs any more.
    pub(super) fn remove_framework(&mut self, framework: u32) {
        self.set_waits(framework, [false; 2]);
        self.set_held(framework, &Totals::default());
        self.prune(framework);
    }

    /// Removes a node that nothing needs, and those above it that then nothing needs.
    fn prune(&mut self, mut node: u32) {
        while node != ROOT && self.nodes[at(node)].population == 0 && self.nodes[at(node)].settings.is_none()
        {
            let parent = self.nodes[at(node)].parent;
            self.vacate(node);
            let above = &mut self.nodes[at(parent)];
            above.population -= 1;
            if above.leaf == Some(node) {
                above.leaf = None;
            }
            node = parent;
        }
    }

    /// Takes over what an operator says of a role.
    pub(super) fn set_role(&mut self, role: &str, settings: RoleSettings) {
        let node = self.role(role);
        // Its siblings' sum of weights has the old one.
        self.place(node, [false; 2]);
        self.guarantees |= settings.guarantee != Bundle::default();
        self.nodes[at(node)].settings = Some(Box::new(settings));
        if self.guarantees {
            let path: Vec<_> = self.path(node).collect();
            for n in path.into_iter().chain([ROOT]) {
                self.nodes[at(n)].need.get_or_insert_default();
            }
        }
        self.eased.push(node);
        self.settle(node);
    }

    /// Forgets what an operator said of a role.
    pub(super) fn clear_role(&mut self, role: &str) {
        let Some(&node) = self.roles.get(role) else { return };
        // Its siblings' sum of weights has the old one.
        self.place(node, [false; 2]);
        self.nodes[at(node)].settings = None;
        self.settle(node);
        self.prune(node);
    }

    fn role(&mut self, role: &str) -> u32 {
        if let Some(&node) = self.roles.get(role) {
            return node;
        }
        let parent = role.rsplit_once('/').map_or(ROOT, |(above, _)| self.role(above));
        let name: Arc<str> = role.into();
        let node = self.add(What::Role, name.clone(), parent);
        self.roles.insert(name, node);
        node
    }

    fn add(&mut self, what: What, role: Arc<str>, parent: u32) -> u32 {
        let node = Node::new(what, role, parent);
        self.nodes[at(parent)].population += 1;
        if let Some(free) = self.vacant.pop() {
            self.nodes[at(free)] = node;
            return free;
        }
        self.nodes.push(node);
        u32::try_from(self.nodes.len() - 1).unwrap_or(u32::MAX)
    }

    fn vacate(&mut self, node: u32) {
        let old = &self.nodes[at(node)];
        if old.what == What::Role {
            let name = old.role.clone();
            self.roles.remove(&name);
        }
        self.nodes[at(node)] = Node::new(What::Framework { waits: [false; 2] }, "".into(), ROOT);
        self.vacant.push(node);
    }

    // What changes.

    /// For offers of which classes a framework waits.
    pub(super) fn set_waits(&mut self, framework: u32, waits: [bool; 2]) {
        self.nodes[at(framework)].what = What::Framework { waits };
        self.settle(framework);
    }

    pub(super) fn held(&self, node: u32) -> &Totals {
        &self.nodes[at(node)].held
    }

    /// A framework holds this now.
    pub(super) fn set_held(&mut self, framework: u32, held: &Totals) {
        let old = self.nodes[at(framework)].held;
        if old == *held {
            return;
        }
        let less = (0..KINDS).any(|kind| held.0[kind] < old.0[kind]);
        let mut node = framework;
        while node != ROOT {
            let this = &mut self.nodes[at(node)];
            this.held.exchange(&old, held);
            if less && this.settings.is_some() && this.pinched.take() {
                self.eased.push(node);
            }
            node = this.parent;
        }
        self.settle(framework);
    }

    /// A framework is given this on top, and goes behind its equals.
    pub(super) fn charge(&mut self, framework: u32, given: &Bundle) {
        self.turns += 1;
        let mut node = framework;
        while node != ROOT {
            let this = &mut self.nodes[at(node)];
            this.held.add(given);
            this.turn = self.turns;
            node = this.parent;
        }
        self.settle(framework);
    }

    /// Shares are of another cluster from now on.
    pub(super) fn rescale(&mut self, capacity: &Totals) {
        self.scale.measure(capacity);
        let mut orders = BTreeMap::<(u32, usize), Vec<(Key, u32)>>::new();
        for node in 1..self.nodes.len() {
            let node = u32::try_from(node).unwrap_or(u32::MAX);
            let Some(old) = self.nodes[at(node)].key else { continue };
            let key = self.key(node);
            let (parent, contends) = (self.nodes[at(node)].parent, self.nodes[at(node)].contends);
            self.nodes[at(node)].key = Some(key);
            if key.tier != old.tier {
                self.move_weight(node, old.tier, key.tier);
            }
            for class in (0..2).filter(|&class| contends[class]) {
                orders.entry((parent, class)).or_default().push((key, node));
            }
        }
        for ((parent, class), order) in orders {
            self.nodes[at(parent)].order[class] = order.into_iter().collect();
        }
    }

    fn move_weight(&mut self, node: u32, from: i64, to: i64) {
        let (weight, parent) = (self.nodes[at(node)].weight_millionths(), self.nodes[at(node)].parent);
        let weights = &mut self.nodes[at(parent)].weights;
        count_out(weights, from, weight);
        *weights.entry(to).or_default() += weight;
    }

    /// Puts a node and its ancestors where they now belong.
    fn settle(&mut self, mut node: u32) {
        while node != ROOT {
            self.renew_need(node);
            let contends = self.contends(node);
            self.place(node, contends);
            node = self.nodes[at(node)].parent;
        }
        self.renew_need(ROOT);
    }

    fn place(&mut self, node: u32, contends: [bool; 2]) {
        let key = contends.contains(&true).then(|| self.key(node));
        let this = &mut self.nodes[at(node)];
        let (old, parent) = (std::mem::replace(&mut this.key, key), this.parent);
        let did = std::mem::replace(&mut this.contends, contends);
        let weight = this.weight_millionths();
        if (old, did) == (key, contends) {
            return;
        }
        let above = &mut self.nodes[at(parent)];
        for (class, order) in above.order.iter_mut().enumerate() {
            if let Some(old) = old.filter(|_| did[class]) {
                order.remove(&(old, node));
            }
            if let Some(key) = key.filter(|_| contends[class]) {
                order.insert((key, node));
            }
        }
        if old.map(|k| k.tier) == key.map(|k| k.tier) {
            return;
        }
        if let Some(old) = old {
            count_out(&mut above.weights, old.tier, weight);
        }
        if let Some(key) = key {
            *above.weights.entry(key.tier).or_default() += weight;
        }
    }

    fn contends(&self, node: u32) -> [bool; 2] {
        let this = &self.nodes[at(node)];
        if let What::Framework { waits } = this.what {
            return waits;
        }
        let Some(left) = this.limit_left() else { return [0, 1].map(|class| !this.order[class].is_empty()) };
        CLASSES.map(|class| {
            let is_open = left.is_worth_offering(class);
            if !is_open {
                this.pinched.set(true);
            }
            is_open && !this.order[index(class)].is_empty()
        })
    }

    fn key(&self, node: u32) -> Key {
        let this = &self.nodes[at(node)];
        let settings = this.settings.as_deref();
        let standing = Standing {
            role: &this.role,
            is_framework: matches!(this.what, What::Framework { .. }),
            held: &this.held,
            dominant_share: self.scale.share(&this.held),
            weight: settings.map_or(1.0, |s| s.weight.get()),
            priority: settings.map_or(0, |s| s.priority),
        };
        let rank = self.policy.rank(&standing);
        // -0.0 would sort behind everything.
        let need = if rank.need.is_nan() { f64::INFINITY } else { rank.need.max(0.0) + 0.0 };
        let needs = this.need.as_ref().is_some_and(|need| !need.total.is_empty());
        Key { is_satisfied: !needs, tier: rank.tier, need_bits: need.to_bits(), turn: this.turn }
    }

    fn renew_need(&mut self, node: u32) {
        let this = &self.nodes[at(node)];
        let Some(need) = &this.need else { return };
        let lacks = this.lacks();
        let total = Totals(std::array::from_fn(|k| need.below.0[k].max(lacks.0[k].into())));
        let (old, parent) = (need.total, this.parent);
        if old == total {
            return;
        }
        if let Some(need) = &mut self.nodes[at(node)].need {
            need.total = total;
        }
        if node != ROOT
            && let Some(above) = &mut self.nodes[at(parent)].need
        {
            above.below.exchange(&old, &total);
        }
    }

    // What is asked.

    /// The first framework in the order of this class that passes.
    pub(super) fn first(
        &self,
        class: ResourceClass,
        needy_only: bool,
        passes: &impl Fn(u32) -> bool,
    ) -> Option<u32> {
        self.first_below(ROOT, index(class), needy_only, passes)
    }

    fn first_below(
        &self,
        node: u32,
        class: usize,
        needy_only: bool,
        passes: &impl Fn(u32) -> bool,
    ) -> Option<u32> {
        for &(key, child) in &self.nodes[at(node)].order[class] {
            if needy_only && key.is_satisfied {
                return None;
            }
            let found = match self.nodes[at(child)].what {
                What::Framework { .. } => passes(child).then_some(child),
                // Only at the top is it known whether a guarantee is what is kept free.
                What::Role | What::Leaf => self.first_below(child, class, false, passes),
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Its place and those of its ancestors, the topmost first; `None` where one of them does not contend.
    pub(super) fn places(&self, framework: u32) -> Option<Vec<Key>> {
        let mut keys = self.path(framework).map(|n| self.nodes[at(n)].key).collect::<Option<Vec<_>>>()?;
        keys.reverse();
        Some(keys)
    }

    /// A node and its ancestors, without the root.
    pub(super) fn path(&self, node: u32) -> impl Iterator<Item = u32> {
        let up = |&n: &u32| Some(self.nodes[at(n)].parent).filter(|&p| p != ROOT);
        std::iter::successors(Some(node).filter(|&n| n != ROOT), up)
    }

    /// The part of the cluster that a framework may have if all that contend now take theirs.
    pub(super) fn entitled(&self, framework: u32) -> f64 {
        self.path(framework).map(|n| self.part_of_siblings(n)).product()
    }

    pub(super) fn part_of_siblings(&self, node: u32) -> f64 {
        let this = &self.nodes[at(node)];
        let tier = this.key.map_or(0, |k| k.tier);
        let weight = this.weight_millionths();
        let sum = self.nodes[at(this.parent)].weights.get(&tier).copied().unwrap_or_default();
        weight as f64 / sum.max(weight).max(1) as f64
    }

    /// What quotas leave for a framework; `None` where none bounds it.
    pub(super) fn room(&self, framework: u32, free: &Totals) -> Option<Bundle> {
        let limits = self.limit_room(framework);
        let Some(kept) = self.kept_free() else { return limits };
        let allowed = free.beyond(kept).plus(&self.owed(framework));
        Some(limits.map_or(allowed, |room| room.at_most(&allowed)))
    }

    /// What limits leave for a framework, whatever guarantees keep free; `None` where none bounds it.
    pub(super) fn limit_room(&self, framework: u32) -> Option<Bundle> {
        let limits = self.path(framework).filter_map(|node| self.nodes[at(node)].limit_left());
        limits.reduce(|all, one| all.at_most(&one))
    }

    /// How much of what is kept free is kept for this framework, among others.
    pub(super) fn owed(&self, framework: u32) -> Bundle {
        self.path(framework)
            .filter(|&n| self.nodes[at(n)].need.is_some())
            .fold(Bundle::default(), |sum, n| sum.plus(&self.nodes[at(n)].extra()))
    }

    /// What all guarantees lack together; `None` where they lack nothing.
    pub(super) fn kept_free(&self) -> Option<&Totals> {
        self.nodes[at(ROOT)].need.as_ref().map(|need| &need.below).filter(|kept| !kept.is_empty())
    }

    /// Remembers that a limit kept something from this framework.
    pub(super) fn pinch(&self, framework: u32) {
        for node in self.path(framework) {
            self.nodes[at(node)].pinched.set(true);
        }
    }

    pub(super) fn has_eased(&self) -> bool {
        !self.eased.is_empty()
    }

    /// The frameworks that may have more room than they had.
    pub(super) fn take_eased(&mut self) -> BTreeSet<u32> {
        let mut frameworks = BTreeSet::new();
        for node in std::mem::take(&mut self.eased) {
            self.collect(node, &mut frameworks);
        }
        frameworks
    }

    fn collect(&self, node: u32, into: &mut BTreeSet<u32>) {
        match self.nodes[at(node)].what {
            What::Framework { .. } => drop(into.insert(node)),
            What::Role | What::Leaf => {
                let both = self.nodes[at(node)].order.iter().flatten();
                both.for_each(|&(_, child)| self.collect(child, into));
            }
        }
    }

    pub(super) fn role_of(&self, node: u32) -> &str {
        &self.nodes[at(node)].role
    }

    /// All roles, and their nodes.
    pub(super) fn roles(&self) -> impl Iterator<Item = (&str, u32)> {
        self.roles.iter().map(|(role, &node)| (&**role, node))
    }

    /// What an operator said of a role; `None` where nobody said anything.
    pub(super) fn said_of(&self, role: &str) -> Option<RoleSettings> {
        self.nodes[at(*self.roles.get(role)?)].settings.as_deref().copied()
    }

    /// How many frameworks are right in a role.
    pub(super) fn frameworks_in(&self, role: u32) -> u32 {
        self.nodes[at(role)].leaf.map_or(0, |leaf| self.nodes[at(leaf)].population)
    }

    pub(super) fn is_framework(&self, node: u32) -> bool {
        matches!(self.nodes[at(node)].what, What::Framework { .. })
    }

    pub(super) fn is_leaf(&self, node: u32) -> bool {
        self.nodes[at(node)].what == What::Leaf
    }

    pub(super) fn settings(&self, node: u32) -> RoleSettings {
        self.nodes[at(node)].settings.as_deref().copied().unwrap_or_default()
    }

    /// Siblings that are served before it, and all that contend beside it: for guaranteed offers, if it wants such.
    pub(super) fn place_among_siblings(&self, node: u32) -> (usize, usize) {
        let this = &self.nodes[at(node)];
        let order = &self.nodes[at(this.parent)].order[usize::from(!this.contends[0])];
        let before = this.key.map_or(order.len(), |key| order.range(..(key, node)).count());
        (before, order.len())
    }
}

/// In the order of [`index`].
const CLASSES: [ResourceClass; 2] = [ResourceClass::Guaranteed, ResourceClass::Revocable];

fn index(class: ResourceClass) -> usize {
    usize::from(class == ResourceClass::Revocable)
}

fn count_out(weights: &mut BTreeMap<i64, u64>, tier: i64, weight: u64) {
    if let Some(sum) = weights.get_mut(&tier) {
        *sum = sum.saturating_sub(weight);
        if *sum == 0 {
            weights.remove(&tier);
        }
    }
}

/// The place of a number in a list.
pub(super) fn at(number: u32) -> usize {
    number as usize
}
