//! Rules as the kernel looks them up: verdicts for each prefix and each name. Pure.
//!
//! A prefix's verdicts are those of the prefix around it, painted over with its own rules, denials last. So the
//! longest prefix that holds an address knows what every shorter one says, and one lookup is enough.

use std::{collections::HashMap, ops::RangeInclusive};

use bulkhead_abi::{CELLS, Cells, INGRESS_CELL, MAX_STRETCHES, PortVerdicts, class, talk_flag, verdict};

use crate::{
    grant::talk::{Peer, Prefix, TalkError, TalkGrant, TalkProtocol, TalkRule},
    kernel::bpf::{PrefixVerdicts, Verdicts},
};

/// Compiles the rules of a task. `None` where nothing is ever refused: such a task has no entry in the kernel.
///
/// # Errors
/// [`TalkError::Stretches`] where the rules for one peer tell too many ports apart.
pub fn verdicts(talk: &TalkGrant) -> Result<Option<Verdicts>, TalkError> {
    if talk.allows_all() {
        return Ok(None);
    }
    let mut ports = Ports::default();
    let rest = if talk.deny_rest { verdict::DENY } else { verdict::ALLOW };
    let mut named = |peer: Peer, below: u32| -> Result<Cells, TalkError> {
        let rules: Vec<_> = talk.rules.iter().filter(|rule| rule.peer == peer).collect();
        ports.cells(peer, &Painted::plain(below).over(&rules))
    };
    let of_framework = named(Peer::Framework, verdict::PASS)?;
    let of_role = named(Peer::Role, verdict::PASS)?;
    let node = named(Peer::Node, rest)?;
    let outside = named(Peer::Outside, rest)?;
    let prefixes = of_prefixes(&talk.rules, &mut ports)?;

    let names = of_framework != [verdict::PASS; CELLS] || of_role != [verdict::PASS; CELLS];
    let has = |v4: bool| prefixes.iter().any(|p| p.prefix.address().is_ipv4() == v4);
    let flag = |yes: bool, flag: u32| if yes { flag } else { 0 };
    let flags = flag(has(true), talk_flag::V4)
        | flag(has(false), talk_flag::V6)
        | flag(names, talk_flag::NAMES)
        | flag(node != outside, talk_flag::NODE);
    Ok(Some(Verdicts { flags, of_framework, of_role, node, outside, prefixes, ports: ports.tables }))
}

fn of_prefixes(rules: &[TalkRule], ports: &mut Ports) -> Result<Vec<PrefixVerdicts>, TalkError> {
    let mut own: HashMap<Prefix, Vec<&TalkRule>> = HashMap::new();
    for rule in rules {
        if let Peer::Prefix(prefix) = rule.peer {
            own.entry(prefix).or_default().push(rule);
        }
    }
    // Wider ones first: each then finds the one around it finished.
    let mut order: Vec<_> = own.into_iter().collect();
    order.sort_unstable_by_key(|(prefix, _)| (prefix.bits(), *prefix));
    let mut painted: HashMap<Prefix, Painted> = HashMap::with_capacity(order.len());
    let mut done = Vec::with_capacity(order.len());
    for (prefix, rules) in order {
        let around = (0..prefix.bits()).rev().find_map(|bits| painted.get(&prefix.widen(bits)));
        let this = around.cloned().unwrap_or_else(|| Painted::plain(verdict::PASS)).over(&rules);
        done.push(PrefixVerdicts { prefix, cells: ports.cells(Peer::Prefix(prefix), &this)? });
        painted.insert(prefix, this);
    }
    Ok(done)
}

/// For each cell, where a stretch of ports begins and its verdict; the first begins at 0.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Painted([Vec<(u16, u32)>; CELLS]);

impl Painted {
    fn plain(below: u32) -> Self {
        Self(std::array::from_fn(|_| vec![(0, below)]))
    }

    /// With these rules over it; where they contradict each other, denials win.
    fn over(mut self, rules: &[&TalkRule]) -> Self {
        for allow in [true, false] {
            for rule in rules.iter().filter(|rule| rule.allow == allow) {
                let verdict = if allow { verdict::ALLOW } else { verdict::DENY };
                for index in cells_of(rule) {
                    let cell = &mut self.0[index];
                    if rule.ports.is_empty() {
                        *cell = vec![(0, verdict)];
                    }
                    rule.ports.iter().for_each(|range| paint(cell, range, verdict));
                }
            }
        }
        self
    }
}

fn cells_of(rule: &TalkRule) -> impl Iterator<Item = usize> {
    let directions = [(rule.egress, 0), (rule.ingress, INGRESS_CELL)];
    let classes: &[u32] = match (rule.protocol, rule.ports.is_empty()) {
        (TalkProtocol::Tcp, _) => &[class::TCP],
        (TalkProtocol::Udp, _) => &[class::UDP],
        (TalkProtocol::Any, false) => &[class::TCP, class::UDP],
        (TalkProtocol::Any, true) => &[class::TCP, class::UDP, class::OTHER],
    };
    let wanted = directions.into_iter().filter(|(yes, _)| *yes);
    wanted.flat_map(move |(_, direction)| classes.iter().map(move |class| (direction + class) as usize))
}

fn paint(cell: &mut Vec<(u16, u32)>, range: &RangeInclusive<u16>, verdict: u32) {
    let at = |port: u16| cell.partition_point(|(first, _)| *first <= port) - 1;
    let (begin, end) = (at(*range.start()), at(*range.end()));
    let mut middle = vec![];
    if cell[begin].0 < *range.start() {
        middle.push(cell[begin]);
    }
    middle.push((*range.start(), verdict));
    let next = range.end().checked_add(1);
    let goes_on = next.filter(|next| cell.get(end + 1).is_none_or(|(first, _)| first > next));
    middle.extend(goes_on.map(|next| (next, cell[end].1)));
    cell.splice(begin..=end, middle);
    // Neighbours that say the same are one stretch.
    cell.dedup_by(|later, earlier| later.1 == earlier.1);
}

/// The tables of ports so far, each once.
#[derive(Default)]
struct Ports {
    tables: Vec<PortVerdicts>,
    numbers: HashMap<PortVerdicts, u32>,
}

impl Ports {
    fn cells(&mut self, peer: Peer, painted: &Painted) -> Result<Cells, TalkError> {
        let mut cells = [verdict::DENY; CELLS];
        for (word, stretches) in cells.iter_mut().zip(&painted.0) {
            *word = match stretches.as_slice() {
                [(_, verdict)] => *verdict,
                several => {
                    let table =
                        table(several).ok_or_else(|| TalkError::Stretches { peer: peer.to_string() })?;
                    self.number(table)
                }
            };
        }
        Ok(cells)
    }

    fn number(&mut self, table: PortVerdicts) -> u32 {
        *self.numbers.entry(table).or_insert_with(|| {
            self.tables.push(table);
            verdict::FIRST_PORTS + u32::try_from(self.tables.len() - 1).unwrap_or(u32::MAX)
        })
    }
}

/// `None` where there are too many stretches.
fn table(stretches: &[(u16, u32)]) -> Option<PortVerdicts> {
    let words = stretches.iter().map(|(first, verdict)| u32::from(*first) << 16 | verdict);
    let last = words.clone().next_back()?;
    let mut table = PortVerdicts { stretches: [last; MAX_STRETCHES] };
    let slots = table.stretches.get_mut(..stretches.len())?;
    slots.iter_mut().zip(words).for_each(|(slot, word)| *slot = word);
    Some(table)
}

#[cfg(test)]
mod tests;
