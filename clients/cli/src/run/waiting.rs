//! What `run` says while no offer fits.

use bulkhead_proto::{
    resources::SCALARS,
    v1::{AgentEntry, Offer, Resources},
};

use super::need::{Misfit, Need};
use crate::quantity::{cpus, resources, size};

/// The offers seen so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Tally {
    pub(crate) offers: usize,
    /// The largest by CPU, then memory, and why it did not do.
    largest: Option<(Resources, Option<Misfit>)>,
}

impl Tally {
    /// Counts offers that came.
    pub(crate) fn count(&mut self, need: &Need, offers: &[Offer]) {
        self.offers += offers.len();
        for offer in offers {
            let amount = offer.resources.clone().unwrap_or_default();
            let rank = |r: &Resources| (r.cpu_milli, r.mem_bytes);
            if self.largest.as_ref().is_none_or(|(most, _)| rank(&amount) > rank(most)) {
                self.largest = Some((amount, need.fit(offer).err()));
            }
        }
    }
}

/// `waiting for an offer with 2 CPUs, 1 GiB; ...`: what is needed, and what there is instead.
/// `agents` is what the master lists, where it could be asked.
pub(crate) fn waiting_words(need: &Need, tally: &Tally, agents: Option<&[AgentEntry]>) -> String {
    format!("waiting for an offer with {}{}", need.words(), instead(need, tally, agents))
}

/// The words for a wait that was in vain.
pub(crate) fn timeout_words(
    need: &Need,
    tally: &Tally,
    agents: Option<&[AgentEntry]>,
    waited: &str,
) -> String {
    format!(
        "no offer with {} came within {waited}{}; see `bulkhead agents`, ask for less, or wait longer with --timeout",
        need.words(),
        instead(need, tally, agents)
    )
}

fn instead(need: &Need, tally: &Tally, agents: Option<&[AgentEntry]>) -> String {
    if let Some((largest, misfit)) = &tally.largest {
        let seen = match tally.offers {
            1 => "1 offer seen".to_owned(),
            n => format!("{n} offers seen, the largest"),
        };
        let why = misfit.as_ref().map(|m| format!(", but {m}")).unwrap_or_default();
        return format!("; {seen} {}{why}", resources(largest));
    }
    match agents {
        None => String::new(),
        Some(agents) => agents_words(need, agents),
    }
}

/// Smaller offers are not sent to us, so what agents have free says what is missing.
fn agents_words(need: &Need, agents: &[AgentEntry]) -> String {
    let connected: Vec<&AgentEntry> = agents.iter().filter(|a| a.connected).collect();
    if connected.is_empty() {
        return "; no agent is connected to the master (start one: `bulkhead-agent`)".to_owned();
    }
    let capacity = |pick: fn(&Resources) -> u64| {
        let of = |a: &&AgentEntry| a.report.as_ref().and_then(|r| r.capacity.as_ref()).map_or(0, pick);
        connected.iter().map(of).max().unwrap_or(0)
    };
    let (cpu_milli, mem_bytes) = (capacity(|r| r.cpu_milli), capacity(|r| r.mem_bytes));
    let unheld =
        "no agent offers any: a kernel that cannot hold it to a task, or an operator who did not allow it";
    if cpu_milli == 0 {
        return format!("; CPU: {unheld}");
    }
    if mem_bytes == 0 {
        return format!("; memory: {unheld}");
    }
    let wanted = &need.amounts;
    let unheld_kind = SCALARS.iter().find(|kind| (kind.get)(wanted) > 0 && capacity(kind.get) == 0);
    if let Some(kind) = unheld_kind {
        return format!("; {}: {unheld}", kind.unit);
    }
    if wanted.cpu_milli > cpu_milli || wanted.mem_bytes > mem_bytes {
        return format!("; the largest agent has {} and {} in all", cpus(cpu_milli), size(mem_bytes));
    }
    let all_ports = |a: &AgentEntry| {
        let capacity = a.report.as_ref().and_then(|r| r.capacity.clone()).unwrap_or_default();
        capacity.port_set().unwrap_or_default()
    };
    if let Some(ports) = &need.ports
        && !connected.iter().any(|a| ports.are_in(&all_ports(a)))
    {
        return format!("; no agent has {ports} to offer");
    }
    let free = |a: &&&AgentEntry| a.report.as_ref().and_then(|r| r.free.clone()).unwrap_or_default();
    let most = connected.iter().max_by_key(|a| (free(a).cpu_milli, free(a).mem_bytes));
    most.map_or_else(String::new, |agent| {
        let mut amount = free(&agent);
        if need.ports.is_none() {
            amount.ports.clear();
        }
        let host = agent.agent.as_ref().map_or("an agent", |a| a.hostname.as_str());
        format!("; the most that is free is {} on {host}", resources(&amount))
    })
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::v1::{AgentInfo, PortRange, ResourceReport};

    use super::{
        super::need::tests::{need, offer},
        *,
    };

    fn agent(connected: bool, capacity: (u64, u64), free: (u64, u64)) -> AgentEntry {
        let amount = |(cpu_milli, mib): (u64, u64)| {
            Some(Resources { cpu_milli, mem_bytes: mib << 20, ports: Vec::new(), ..Resources::default() })
        };
        AgentEntry {
            agent: Some(AgentInfo { hostname: "node-1".to_owned(), ..AgentInfo::default() }),
            report: Some(ResourceReport {
                capacity: amount(capacity),
                free: amount(free),
                ..ResourceReport::default()
            }),
            connected,
            ..AgentEntry::default()
        }
    }

    #[test]
    fn offers_that_came_are_counted_with_the_largest() {
        let need = need(&["--cpus", "2", "--mem", "1GiB"]);
        let mut tally = Tally::default();
        tally.count(&need, &[offer(500, 4096, &[]), offer(1000, 512, &[])]);
        tally.count(&need, &[offer(250, 64, &[])]);
        assert_eq!(
            waiting_words(&need, &tally, None),
            "waiting for an offer with 2 CPUs, 1 GiB; 3 offers seen, the largest 1 CPU, 512 MiB, but it has 1 CPU"
        );
    }

    #[test]
    fn without_offers_the_agents_say_what_is_missing() {
        let need = need(&["--cpus", "2", "--mem", "1GiB"]);
        let words = |agents: &[AgentEntry]| instead(&need, &Tally::default(), Some(agents));
        let none = "; no agent is connected to the master (start one: `bulkhead-agent`)";
        assert_eq!(words(&[]), none);
        assert_eq!(words(&[agent(false, (8000, 8192), (8000, 8192))]), none);
        assert!(words(&[agent(true, (0, 8192), (0, 8192))]).starts_with("; CPU: no agent offers any"));
        assert!(words(&[agent(true, (8000, 0), (8000, 0))]).starts_with("; memory: no agent offers any"));
        assert_eq!(
            words(&[agent(true, (1500, 8192), (1000, 8192))]),
            "; the largest agent has 1.5 CPUs and 8 GiB in all"
        );
        assert_eq!(
            words(&[agent(true, (4000, 8192), (500, 4096)), agent(true, (4000, 8192), (1000, 512))]),
            "; the most that is free is 1 CPU, 512 MiB on node-1"
        );
    }

    #[test]
    fn ports_count_where_they_are_asked_for() {
        let mut entry = agent(true, (4000, 8192), (1000, 512));
        let report = entry.report.as_mut().unwrap();
        report.capacity.as_mut().unwrap().ports =
            vec![PortRange { first: 31_000, last: 31_009, ..PortRange::default() }];
        report.free.as_mut().unwrap().ports =
            vec![PortRange { first: 31_005, last: 31_009, ..PortRange::default() }];
        let agents = [entry];
        let words = |ports: &str| instead(&need(&["--ports", ports]), &Tally::default(), Some(&agents));
        assert_eq!(words("8080"), "; no agent has port 8080 to offer");
        assert_eq!(words("11"), "; no agent has 11 ports to offer");
        let free = "; the most that is free is 1 CPU, 512 MiB, ports 31005-31009 on node-1";
        assert_eq!((words("31000").as_str(), words("10").as_str()), (free, free));
    }

    #[test]
    fn a_wait_in_vain_says_what_to_do() {
        let words = timeout_words(&need(&[]), &Tally::default(), None, "60 s");
        assert!(
            words.starts_with("no offer with 0.5 CPU, 128 MiB came within 60 s; see `bulkhead agents`"),
            "{words}"
        );
    }
}
