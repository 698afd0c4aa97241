//! Why a framework is offered what it is, in words: one line for each number of the master's allocator.

use std::collections::BTreeMap;

use super::{Line, named, words};
use crate::{
    amount::cpu_number,
    v1::{
        AgentForFramework, AgentName, ExplainFrameworkResponse, PlaceKind, ResourceClass, SharePlace,
        WhyNotOffered,
    },
};

/// All of it, from what it asks for down to the agents that it is not offered.
pub fn lines(answer: &ExplainFrameworkResponse) -> Vec<Line> {
    let mut lines = vec![asks(answer)];
    lines.extend(shares(answer));
    lines.extend(quotas(answer));
    lines.extend(answer.agent.iter().flat_map(|agent| agent_lines(agent, answer)));
    lines.extend(agents(answer));
    lines
}

/// `CPU 1.5`, `memory 2 GiB`, `ports 4`: an amount with its kind, as it stands in maps of amounts.
pub fn amount(kind: &str, amount: u64) -> String {
    match words(kind) {
        Some(words) => format!("{} {}", words.what, (words.amount)(amount)),
        None if kind == "revocable_cpu_milli" => format!("revocable CPU {}", cpu_number(amount)),
        None => format!("{kind} {amount}"),
    }
}

/// The same of several, in one line; `-` of none.
pub fn amounts(all: &BTreeMap<String, u64>) -> String {
    let texts: Vec<_> = all.iter().map(|(kind, &of)| amount(kind, of)).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(", ") }
}

/// A part of the whole, as people write it; parts of less than a hundredth of a percent are not nothing.
pub fn percent(part: f64) -> String {
    match part * 100.0 {
        percent if percent > 0.0 && percent < 0.01 => "under 0.01%".to_owned(),
        percent if percent < 10.0 && percent > 0.0 => format!("{percent:.2}%"),
        percent => format!("{percent:.0}%"),
    }
}

fn line(what: &str, part: &'static str, amount: String, why: String) -> Line {
    Line { what: what.to_owned(), part, amount, why }
}

fn asks(answer: &ExplainFrameworkResponse) -> Line {
    let classes: Vec<_> = answer.classes().map(class_name).collect();
    let minimum = answer.minimum.as_ref().map(least).filter(|text| text != "-");
    let minimum =
        minimum.map_or_else(|| "of any size".to_owned(), |text| format!("each with {text} at least"));
    let mut why = format!("{} offers, {minimum}, as it subscribed", classes.join(" and "));
    if !answer.connected {
        why = format!("it is not connected, so it is offered nothing; before, it asked for {why}");
    }
    line("framework", "offers", answer.offer_count.to_string(), why)
}

fn least(minimum: &crate::v1::Resources) -> String {
    let mut kinds: BTreeMap<_, _> = crate::resources::SCALARS
        .iter()
        .map(|kind| (kind.name.to_owned(), (kind.get)(minimum)))
        .filter(|(_, amount)| *amount > 0)
        .collect();
    let ports = minimum.port_set().map_or(0, |ports| ports.len() as u64);
    if ports > 0 {
        kinds.insert("ports".to_owned(), ports);
    }
    amounts(&kinds)
}

fn class_name(class: ResourceClass) -> &'static str {
    match class {
        ResourceClass::Revocable => "revocable",
        _ => "guaranteed",
    }
}

/// From the topmost role down, and what comes out of it.
fn shares(answer: &ExplainFrameworkResponse) -> Vec<Line> {
    let mut lines: Vec<_> = answer.path.iter().map(place_line).collect();
    let parts: Vec<_> = answer.path.iter().map(|place| percent(place.part_of_parent)).collect();
    let why = format!("if all that wait now take theirs: {}", parts.join(" of "));
    lines.push(line("entitled", "share", percent(answer.entitled_share), why));
    lines
}

fn place_line(place: &SharePlace) -> Line {
    let what = match place.kind() {
        PlaceKind::Framework => "the framework".to_owned(),
        PlaceKind::FrameworksOfRole => format!("frameworks right in {}", place.role),
        PlaceKind::Role | PlaceKind::Unspecified => format!("role {}", place.role),
    };
    let holds = match place.dominant_kind.as_str() {
        "" => "it holds nothing that counts".to_owned(),
        kind => {
            let most = amount(kind, place.held.get(kind).copied().unwrap_or_default());
            format!("it holds {most}, the largest of its parts of the cluster")
        }
    };
    let settings = place.settings.clone().unwrap_or_default();
    let weight =
        if place.settings.is_some() { format!(", weight {}", settings.weight) } else { String::new() };
    let priority = match settings.priority {
        0 => String::new(),
        priority => format!(", priority {priority}"),
    };
    let mut why = format!("{holds}{weight}{priority}; {}", served(place));
    if !settings.limit.is_empty() {
        why += &format!("; limit: {}", amounts(&settings.limit));
    }
    if !settings.guarantee.is_empty() {
        why += &format!("; guarantee: {}", amounts(&settings.guarantee));
    }
    line(&what, "share", percent(place.dominant_share), why)
}

fn served(place: &SharePlace) -> String {
    match (place.served_before, place.siblings) {
        (0, 0 | 1) => "nobody else waits beside it".to_owned(),
        (0, all) => format!("it comes first of {all} that wait"),
        (before, all) if before >= all => format!("it does not wait; {all} beside it do"),
        (before, all) => format!("{before} of {all} that wait come before it"),
    }
}

fn quotas(answer: &ExplainFrameworkResponse) -> Vec<Line> {
    let there = |kind: &String| answer.capacity.contains_key(kind);
    let room: BTreeMap<_, _> =
        answer.room.iter().filter(|(kind, _)| there(kind)).map(|(k, &v)| (k.clone(), v)).collect();
    let (room, why) = if room.is_empty() {
        ("unbounded".to_owned(), "no limit holds for it, and no guarantee keeps anything from it".to_owned())
    } else {
        (
            amounts(&room),
            "what the limits above leave for it, and guarantees of others do not keep".to_owned(),
        )
    };
    let kept = "guaranteed to roles that do not hold it yet; only they are offered it".to_owned();
    named(
        "cluster",
        vec![
            ("there is", amounts(&answer.capacity), format!("over all agents; policy {}", answer.policy)),
            ("free", amounts(&answer.free), "neither granted, nor offered, nor reserved".to_owned()),
            ("kept", amounts(&answer.kept_free), kept),
            ("room", room, why),
        ],
    )
}

fn agents(answer: &ExplainFrameworkResponse) -> Vec<Line> {
    let mut parts = Vec::new();
    for not_offered in &answer.not_offered {
        let why = format!(
            "{}: {}",
            reason(not_offered.why()),
            names(&not_offered.examples, not_offered.agent_count)
        );
        let part = if not_offered.why() == WhyNotOffered::HasOffer { "offered" } else { "not offered" };
        parts.push((part, not_offered.agent_count.to_string(), why));
    }
    if answer.takes_agents > 0 {
        parts.push(("next", answer.takes_agents.to_string(), reason(WhyNotOffered::Unspecified).to_owned()));
    }
    named("agents", parts)
}

/// `a, b, c and 40 more`. Host names come from anywhere; what they do to a terminal does not.
fn names(examples: &[AgentName], count: u64) -> String {
    let names: Vec<_> = examples.iter().map(name).collect();
    let more = count.saturating_sub(names.len() as u64);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", names.join(", "))
}

fn name(agent: &AgentName) -> String {
    let name = if agent.hostname.is_empty() { &agent.agent_id } else { &agent.hostname };
    name.escape_debug().to_string()
}

fn reason(why: WhyNotOffered) -> &'static str {
    match why {
        WhyNotOffered::Unspecified => "it takes them as they are: they come with the next allocation",
        WhyNotOffered::AgentAway => "not connected to the master",
        WhyNotOffered::HasOffer => "it has an offer there that it has not answered",
        WhyNotOffered::OfferedToOthers => "others have an offer of what is free there",
        WhyNotOffered::NothingFree => "tasks and the agent's reserve leave too little for any offer",
        WhyNotOffered::NotConnected => "something is free there, and the framework is not connected",
        WhyNotOffered::ClassNotWanted => "what is free there is of a class that it does not ask for",
        WhyNotOffered::BelowMinimum => "less is free there than it asks for at least",
        WhyNotOffered::Refused => "it refused them, and that still holds",
        WhyNotOffered::Limit => "a limit of its role, or of one above, leaves too little for them",
        WhyNotOffered::KeptFree => "what is free is kept for guarantees of other roles",
    }
}

fn agent_lines(agent: &AgentForFramework, answer: &ExplainFrameworkResponse) -> Vec<Line> {
    let what = format!("agent {}", agent.agent.as_ref().map(name).unwrap_or_default());
    let mut verdict = match agent.why() {
        WhyNotOffered::Unspecified => "it takes it as it is: it comes with the next allocation".to_owned(),
        WhyNotOffered::Refused => "it refused it, and that still holds".to_owned(),
        WhyNotOffered::Limit => "a limit of its role, or of one above, leaves too little for it".to_owned(),
        why => reason(why).to_owned(),
    };
    let minimum = answer.minimum.as_ref().map(least);
    if let (WhyNotOffered::BelowMinimum, Some(minimum)) = (agent.why(), minimum) {
        verdict += &format!(": {minimum}");
    }
    if agent.refused_ms > 0 {
        let seconds = agent.refused_ms.div_ceil(1000);
        verdict +=
            &format!("; its refusal holds for {seconds} s more, or until noticeably more is idle there");
    }
    let part = if agent.why() == WhyNotOffered::HasOffer { "offered" } else { "not offered" };
    named(
        &what,
        vec![
            (part, "-".to_owned(), verdict),
            ("there is", amounts(&agent.capacity), "all that it has".to_owned()),
            ("reserve", amounts(&agent.reserve), "kept for what is no task".to_owned()),
            ("granted", amounts(&agent.granted), "held by tasks".to_owned()),
            ("in offers", amounts(&agent.offered), "held by offers that are not answered".to_owned()),
            ("free", amounts(&agent.free), "may be offered".to_owned()),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{AgentsNotOffered, Resources, RoleSettings};

    fn of(kind: &str, amount: u64) -> BTreeMap<String, u64> {
        BTreeMap::from([(kind.to_owned(), amount)])
    }

    fn answer() -> ExplainFrameworkResponse {
        let role = SharePlace {
            role: "team".into(),
            kind: PlaceKind::Role.into(),
            settings: Some(RoleSettings {
                weight: 2.0,
                limit: of("mem_bytes", 1 << 30),
                ..RoleSettings::default()
            }),
            held: of("cpu_milli", 2500),
            dominant_share: 0.25,
            dominant_kind: "cpu_milli".into(),
            served_before: 1,
            siblings: 3,
            part_of_parent: 0.5,
        };
        let own = SharePlace {
            kind: PlaceKind::Framework.into(),
            settings: None,
            siblings: 1,
            served_before: 0,
            part_of_parent: 1.0,
            ..role.clone()
        };
        let away = AgentsNotOffered {
            why: WhyNotOffered::AgentAway.into(),
            agent_count: 5,
            examples: vec![AgentName { agent_id: "a".into(), hostname: "x\u{1b}".into() }],
        };
        ExplainFrameworkResponse {
            connected: true,
            classes: vec![ResourceClass::Guaranteed.into(), ResourceClass::Revocable.into()],
            minimum: Some(Resources { cpu_milli: 500, ..Resources::default() }),
            policy: "drf".into(),
            path: vec![role, own],
            entitled_share: 0.5,
            room: [of("cpu_milli", 0), of("disk_bytes", 0)].into_iter().flatten().collect(),
            capacity: of("cpu_milli", 10_000),
            not_offered: vec![away],
            ..ExplainFrameworkResponse::default()
        }
    }

    fn told(answer: &ExplainFrameworkResponse) -> String {
        let line = |l: &Line| format!("{}|{}|{}|{}\n", l.what, l.part, l.amount, l.why);
        lines(answer).iter().map(line).collect()
    }

    #[test]
    fn every_number_has_its_reason() {
        let told = told(&answer());
        for expected in [
            "framework|offers|0|guaranteed and revocable offers, each with CPU 0.5 at least",
            "role team|share|25%|it holds CPU 2.5, the largest of its parts of the cluster, weight 2; 1 of 3 that wait come before it; limit: memory 1 GiB",
            "the framework|share|25%|it holds CPU 2.5, the largest of its parts of the cluster; nobody else waits",
            "entitled|share|50%|if all that wait now take theirs: 50% of 100%",
            "cluster|there is|CPU 10|over all agents; policy drf",
            "|room|CPU 0|what the limits",
            "agents|not offered|5|not connected to the master: x\\u{1b} and 4 more",
        ] {
            assert!(told.contains(expected), "{expected}\n{told}");
        }
        let idle = ExplainFrameworkResponse { connected: false, room: BTreeMap::new(), ..answer() };
        let told = lines(&idle);
        assert!(told[0].why.starts_with("it is not connected"), "{told:?}");
        assert!(told.iter().any(|l| l.part == "room" && l.amount == "unbounded"), "{told:?}");
    }

    #[test]
    fn one_agent_is_told_in_full() {
        let agent = AgentForFramework {
            agent: Some(AgentName { agent_id: "a-1".into(), hostname: String::new() }),
            why: WhyNotOffered::Refused.into(),
            free: of("ports", 3),
            refused_ms: 4_001,
            ..AgentForFramework::default()
        };
        let refused = told(&ExplainFrameworkResponse { agent: Some(agent.clone()), ..answer() });
        assert!(refused.contains("agent a-1|not offered|-|it refused it"), "{refused}");
        assert!(refused.contains("holds for 5 s more"), "{refused}");
        assert!(refused.contains("|free|ports 3|"), "{refused}");
        let why = WhyNotOffered::BelowMinimum.into();
        let small = AgentForFramework { why, refused_ms: 0, ..agent };
        let small = told(&ExplainFrameworkResponse { agent: Some(small), ..answer() });
        assert!(small.contains("less is free there than it asks for at least: CPU 0.5\n"), "{small}");
    }

    #[test]
    fn shares_have_as_many_digits_as_mean_something() {
        let texts = [0.0, 0.00001, 0.0123, 0.5, 1.0].map(percent);
        assert_eq!(texts, ["0%", "under 0.01%", "1.23%", "50%", "100%"]);
    }
}
