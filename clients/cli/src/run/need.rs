//! What a task needs, and whether an offer has it.

use std::collections::BTreeMap;

use bulkhead_proto::{
    resources::{PortSet, SCALARS},
    v1::{Grant, Image, Offer, ResourceClass, Resources, TaskSpec},
};

use crate::{
    args::{RunArgs, is_name_char},
    quantity::{PortsWanted, millis, resources},
};

/// The task to run, before its ports are known.
#[derive(Debug, Clone)]
pub(crate) struct Need {
    /// Everything but the ports.
    pub(crate) amounts: Resources,
    pub(crate) ports: Option<PortsWanted>,
    pub(crate) class: ResourceClass,
    /// Everything but the ports, and what follows from them.
    spec: TaskSpec,
    grant: Grant,
}

/// Why an offer cannot hold the task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misfit {
    #[error("it is of another class")]
    Class,
    #[error("it has {0}")]
    Short(String),
    #[error("it does not have ports {0}")]
    MissingPorts(PortSet),
    #[error("it has {0} ports")]
    PortCount(usize),
}

impl Need {
    /// What the command line asks for; `suffix` makes the id unique.
    pub(crate) fn new(args: &RunArgs, suffix: &str) -> Self {
        let name = args.name.clone().unwrap_or_else(|| default_name(&args.argv, args.image.as_deref()));
        let mut spec = TaskSpec {
            task_id: format!("{name}-{suffix}"),
            name,
            argv: args.argv.clone(),
            env: args.env_map(),
            user: args.user.clone().unwrap_or_default(),
            grant: None,
            kill_grace_ms: args.grace.map_or(0, |g| millis(g).max(1)),
            ..TaskSpec::default()
        };
        args.fences.apply(&mut spec);
        spec.artifacts.clone_from(&args.artifact);
        spec.image = args.image.clone().map(|reference| Image { reference });
        let class = ResourceClass::from(args.class);
        let mut grant = Grant { class: class.into(), ..Grant::default() };
        args.more.options(&mut grant);
        let mut amounts = Resources { cpu_milli: args.cpus, mem_bytes: args.mem, ..Resources::default() };
        args.more.amounts(&mut amounts);
        Self { amounts, ports: args.ports.clone(), class, spec, grant }
    }

    /// The id that the task gets.
    pub(crate) fn task_id(&self) -> &str {
        &self.spec.task_id
    }

    /// The name that lists show.
    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    /// Has it files that are brought first?
    pub(crate) fn has_artifacts(&self) -> bool {
        !self.spec.artifacts.is_empty()
    }

    /// The grace period of a kill; 0 is the agent's default.
    pub(crate) fn grace_ms(&self) -> u64 {
        self.spec.kill_grace_ms
    }

    /// The smallest useful offer. A number of ports cannot be said in it, ports by name can.
    pub(crate) fn minimum(&self) -> Resources {
        let ports = match &self.ports {
            Some(PortsWanted::These(set)) => set.to_ranges(),
            Some(PortsWanted::Any(_)) | None => Vec::new(),
        };
        Resources { ports, ..self.amounts.clone() }
    }

    /// What the offer would grant: the amounts asked for, and ports chosen from the lowest.
    ///
    /// # Errors
    /// The first kind that is too small.
    pub(crate) fn fit(&self, offer: &Offer) -> Result<Resources, Misfit> {
        let has = offer.resources.clone().unwrap_or_default();
        if offer.class() != self.class {
            return Err(Misfit::Class);
        }
        let short = SCALARS.iter().find(|kind| (kind.get)(&has) < (kind.get)(&self.amounts));
        if let Some(kind) = short {
            let mut only = Resources::default();
            (kind.set)(&mut only, (kind.get)(&has));
            let none = || format!("no {}", kind.unit);
            return Err(Misfit::Short(if only.is_empty() { none() } else { resources(&only) }));
        }
        let ports = self.choose_ports(&has.port_set().unwrap_or_default())?;
        Ok(Resources { ports: ports.to_ranges(), ..self.amounts.clone() })
    }

    fn choose_ports(&self, offered: &PortSet) -> Result<PortSet, Misfit> {
        match &self.ports {
            None => Ok(PortSet::default()),
            Some(PortsWanted::Any(count)) => offered.lowest(*count).ok_or(Misfit::PortCount(offered.len())),
            Some(PortsWanted::These(set)) if offered.is_superset(set) => Ok(set.clone()),
            Some(PortsWanted::These(set)) => Err(Misfit::MissingPorts(set.difference(offered))),
        }
    }

    /// The specification to launch with what [`Need::fit`] chose.
    pub(crate) fn spec(&self, granted: Resources) -> TaskSpec {
        let ports = granted.port_set().unwrap_or_default();
        let mut env = port_env(&ports);
        // What the user says about a variable wins.
        env.extend(self.spec.env.clone());
        let grant = Grant { resources: Some(granted), ..self.grant.clone() };
        TaskSpec { env, grant: Some(grant), ..self.spec.clone() }
    }

    /// `2 CPUs, 1 GiB, 1 port`, with the class where it is not the usual one.
    pub(crate) fn words(&self) -> String {
        let ports = self.ports.as_ref().map(|p| format!(", {p}")).unwrap_or_default();
        let class = if self.class == ResourceClass::Revocable { " (revocable)" } else { "" };
        format!("{}{ports}{class}", resources(&self.amounts))
    }
}

/// The variables that tell a task its ports one by one; none where it has none. The agent adds
/// BULKHEAD_PORTS, the same as ranges.
fn port_env(ports: &PortSet) -> BTreeMap<String, String> {
    let all: Vec<String> = ports.numbers().iter().map(|p| p.to_string()).collect();
    let mut env = BTreeMap::new();
    if let Some(first) = all.first() {
        env.insert("PORT".to_owned(), first.clone());
        env.insert("PORTS".to_owned(), all.join(","));
    }
    env.extend(all.into_iter().enumerate().map(|(i, port)| (format!("PORT{i}"), port)));
    env
}

/// The name of the command, or else of the image, without what cannot stand in an id.
fn default_name(argv: &[String], image: Option<&str>) -> String {
    const LONGEST: usize = 32;
    let whole = argv.first().map(String::as_str).or(image).unwrap_or_default();
    let file = whole.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let file = if argv.is_empty() { file.split([':', '@']).next().unwrap_or_default() } else { file };
    let name: String = file.chars().filter(|&c| is_name_char(c)).take(LONGEST).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    if name.is_empty() { "task".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
pub(crate) mod tests {
    use bulkhead_proto::v1::{AgentInfo, PortRange};
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    pub(crate) fn need(args: &[&str]) -> Need {
        let line = ["bulkhead", "run"].iter().chain(args).chain(&["--", "/bin/true"]).copied();
        match Cli::try_parse_from(line).unwrap().command {
            Command::Run(args) => Need::new(&args, "0a1b2c3d"),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn offer(cpu_milli: u64, mem_mib: u64, ports: &[(u32, u32)]) -> Offer {
        Offer {
            offer_id: "o-1".to_owned(),
            agent: Some(AgentInfo {
                hostname: "node-1".into(),
                api_address: "h:1".into(),
                ..AgentInfo::default()
            }),
            class: ResourceClass::Guaranteed.into(),
            resources: Some(Resources {
                cpu_milli,
                mem_bytes: mem_mib << 20,
                ports: ports
                    .iter()
                    .map(|&(first, last)| PortRange { first, last, ..PortRange::default() })
                    .collect(),
                ..Resources::default()
            }),
            ..Offer::default()
        }
    }

    #[test]
    fn an_offer_that_has_it_all_grants_what_was_asked_and_no_more() {
        let granted = need(&["--cpus", "1", "--mem", "64MiB", "--ports", "2"])
            .fit(&offer(4000, 1024, &[(31_000, 31_010)]))
            .unwrap();
        assert_eq!((granted.cpu_milli, granted.mem_bytes), (1000, 64 << 20));
        assert_eq!(granted.port_set().unwrap().to_string(), "31000-31001");
    }

    #[test]
    fn what_is_short_is_named() {
        let three_ports = need(&["--ports", "3"]);
        let need = need(&["--cpus", "2", "--mem", "64MiB", "--ports", "8080,31000"]);
        assert_eq!(need.fit(&offer(1999, 64, &[])), Err(Misfit::Short("1.999 CPUs".to_owned())));
        assert_eq!(need.fit(&offer(2000, 63, &[])), Err(Misfit::Short("63 MiB".to_owned())));
        let missing = need.fit(&offer(2000, 64, &[(31_000, 31_010)])).unwrap_err();
        assert_eq!(missing.to_string(), "it does not have ports 8080");
        let revocable = Offer { class: ResourceClass::Revocable.into(), ..offer(2000, 64, &[]) };
        assert_eq!(need.fit(&revocable), Err(Misfit::Class));
        assert_eq!(three_ports.fit(&offer(2000, 256, &[(1, 2)])), Err(Misfit::PortCount(2)));
    }

    #[test]
    fn the_minimum_has_named_ports_only() {
        assert!(need(&["--ports", "3"]).minimum().ports.is_empty());
        assert_eq!(
            need(&["--ports", "8080"]).minimum().ports,
            vec![PortRange { first: 8080, last: 8080, ..PortRange::default() }]
        );
    }

    #[test]
    fn a_task_learns_its_ports_and_the_user_may_say_otherwise() {
        let need = need(&["--ports", "2", "--env", "PORT1=mine"]);
        let spec = need.spec(need.fit(&offer(4000, 1024, &[(7000, 7000), (7005, 7009)])).unwrap());
        let get = |name: &str| spec.env.get(name).map(String::as_str);
        assert_eq!(get("PORT"), Some("7000"));
        assert_eq!(get("PORTS"), Some("7000,7005"));
        assert_eq!((get("PORT0"), get("PORT1"), get("PORT2")), (Some("7000"), Some("mine"), None));
    }

    #[test]
    fn a_task_without_ports_has_no_port_variables() {
        let need = need(&[]);
        assert!(need.spec(need.fit(&offer(4000, 1024, &[])).unwrap()).env.is_empty());
    }

    #[test]
    fn names_come_from_the_command() {
        let name = |argv0: &str| default_name(&[argv0.to_owned()], None);
        assert_eq!(name("/usr/bin/python3"), "python3");
        assert_eq!(name("./my prog!.sh"), "myprog.sh");
        assert_eq!(name("--"), "task");
        assert_eq!(name("ünï"), "n");
        assert_eq!(default_name(&[], None), "task");
        for image in ["docker://r.example/team/web:v1", "docker://r.example/web@sha256:00", "oci:/srv/web/"] {
            assert_eq!(default_name(&[], Some(image)), "web");
        }
    }

    #[test]
    fn words_read_like_speech() {
        assert_eq!(need(&["--cpus", "2", "--mem", "1GiB", "--ports", "1"]).words(), "2 CPUs, 1 GiB, 1 port");
        assert_eq!(need(&["--class", "revocable"]).words(), "0.5 CPU, 128 MiB (revocable)");
    }
}
