//! Which agent `ID|HOSTNAME` means.

use bulkhead_proto::v1::{AgentEntry, AgentInfo};

/// A reference that names no single agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AgentRefError {
    #[error("no agent is called {0:?}; `bulkhead agents` lists those there are")]
    Unknown(String),
    #[error("{wanted:?} fits {} agents: {}; write more of the id", .candidates.len(), .candidates.join(", "))]
    Ambiguous { wanted: String, candidates: Vec<String> },
}

/// The agent that `wanted` means: an exact id, else a host name, else the start of an id. Among equals a connected one
/// is meant before those that are away.
///
/// # Errors
/// [`AgentRefError`] lists the candidates.
pub(crate) fn resolve<'a>(agents: &'a [AgentEntry], wanted: &str) -> Result<&'a AgentInfo, AgentRefError> {
    let fits = |fit: fn(&AgentInfo, &str) -> bool| {
        let entries = agents.iter().filter_map(|entry| Some((entry.connected, entry.agent.as_ref()?)));
        entries.filter(|(_, agent)| !wanted.is_empty() && fit(agent, wanted)).collect::<Vec<_>>()
    };
    let by = [
        fits(|a, id| a.agent_id == id),
        fits(|a, name| a.hostname == name),
        fits(|a, id| a.agent_id.starts_with(id)),
    ];
    let fits = by.into_iter().find(|fits| !fits.is_empty()).unwrap_or_default();
    let connected: Vec<_> = fits.iter().filter(|(connected, _)| *connected).collect();
    match (connected.as_slice(), fits.as_slice()) {
        ([(_, one)], _) | ([], [(_, one)]) => Ok(*one),
        ([], []) => Err(AgentRefError::Unknown(wanted.to_owned())),
        _ => Err(AgentRefError::Ambiguous {
            wanted: wanted.to_owned(),
            candidates: fits.iter().map(|(_, agent)| agent.agent_id.clone()).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(agent_id: &str, hostname: &str, connected: bool) -> AgentEntry {
        let info = AgentInfo { agent_id: agent_id.into(), hostname: hostname.into(), ..AgentInfo::default() };
        AgentEntry { agent: Some(info), connected, ..AgentEntry::default() }
    }

    #[test]
    fn ids_and_host_names_find_it() {
        let agents = [
            agent("aa11", "one", true),
            agent("aa22", "two", true),
            agent("bb33", "two", false),
            agent("cc44", "aa11", true),
            agent("dd55", "three", false),
            agent("ee66", "four", true),
            agent("ee77", "four", true),
        ];
        for (wanted, found) in
            [("aa11", "aa11"), ("one", "aa11"), ("two", "aa22"), ("cc", "cc44"), ("three", "dd55")]
        {
            assert_eq!(resolve(&agents, wanted).map(|a| a.agent_id.as_str()), Ok(found), "{wanted}");
        }
        let text = |wanted: &str| resolve(&agents, wanted).unwrap_err().to_string();
        assert!(text("aa").contains("fits 2 agents: aa11, aa22"), "{}", text("aa"));
        assert!(text("four").contains("ee66, ee77"), "{}", text("four"));
        for wanted in ["", "zz"] {
            assert_eq!(resolve(&agents, wanted), Err(AgentRefError::Unknown(wanted.into())));
        }
    }
}
