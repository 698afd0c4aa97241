//! The same order by brute force: no tree, no kept orders, everything looked at each time.

use std::cmp::Ordering;

use proptest::prelude::*;

use super::*;

/// A framework of the reference.
struct Simple {
    /// Parts of its role.
    role: Vec<&'static str>,
    held: [u128; 2],
    minimum_cpu: u64,
    refuses: Vec<bool>,
}

struct Reference {
    frameworks: Vec<Simple>,
    /// CPU and memory.
    agents: Vec<[u64; 2]>,
    weights: Vec<(&'static str, f64)>,
    limits: Vec<(&'static str, u64)>,
    /// When something below a role was served last; keyed by the whole role.
    turns: Vec<(String, u64)>,
    turn: u64,
}

impl Reference {
    fn capacity(&self) -> [u128; 2] {
        self.agents.iter().fold([0, 0], |sum, a| [sum[0] + u128::from(a[0]), sum[1] + u128::from(a[1])])
    }

    fn share(&self, held: [u128; 2]) -> f64 {
        let capacity = self.capacity();
        let part =
            |k: usize| if capacity[k] == 0 { 0.0 } else { held[k] as f64 * (1.0 / capacity[k] as f64) };
        part(0).max(part(1))
    }

    fn held_below(&self, role: &str) -> [u128; 2] {
        let below = |f: &&Simple| role.is_empty() || is_below(&f.role.join("/"), role);
        self.frameworks.iter().filter(below).fold([0, 0], |s, f| [s[0] + f.held[0], s[1] + f.held[1]])
    }

    fn turn_of(&self, name: &str) -> u64 {
        self.turns.iter().find(|(n, _)| n == name).map_or(0, |(_, turn)| *turn)
    }

    /// The names of the nodes from the top down to the framework: roles, the leaf, itself.
    fn nodes(&self, index: usize) -> Vec<String> {
        let role = &self.frameworks[index].role;
        let mut nodes: Vec<_> = (1..=role.len()).map(|n| role[..n].join("/")).collect();
        nodes.push(format!("{}/.", role.join("/")));
        nodes.push(format!("#{index}"));
        nodes
    }

    fn node_held(&self, node: &str) -> [u128; 2] {
        if let Some(index) = node.strip_prefix('#') {
            return self.frameworks[index.parse::<usize>().unwrap()].held;
        }
        match node.strip_suffix("/.") {
            Some(role) => self
                .frameworks
                .iter()
                .filter(|f| f.role.join("/") == role)
                .fold([0, 0], |s, f| [s[0] + f.held[0], s[1] + f.held[1]]),
            None => self.held_below(node),
        }
    }

    fn compare(&self, a: usize, b: usize) -> Ordering {
        let (a, b) = (self.nodes(a), self.nodes(b));
        let place = |node: &str| {
            let weight = self.weights.iter().find(|(role, _)| *role == node).map_or(1.0, |(_, w)| *w);
            (self.share(self.node_held(node)) / weight, self.turn_of(node))
        };
        let differ = a.iter().zip(&b).find(|(x, y)| x != y);
        differ.map_or(Ordering::Equal, |(x, y)| {
            let (x, y) = (place(x), place(y));
            x.0.total_cmp(&y.0).then(x.1.cmp(&y.1))
        })
    }

    fn fits(&self, index: usize, cpu: u64) -> bool {
        let role = self.frameworks[index].role.join("/");
        self.limits
            .iter()
            .filter(|(above, _)| is_below(&role, above))
            .all(|(above, limit)| self.held_below(above)[0] + u128::from(cpu) <= u128::from(*limit))
    }

    /// Agents are whole here, as they are where they are small: who gets each, in order. Agents that tie for different
    /// frameworks end the comparison: the order of equals is not promised beyond the turns.
    fn deal(&mut self) -> Vec<Option<usize>> {
        let mut takers = Vec::new();
        for (place, agent) in self.agents.clone().into_iter().enumerate() {
            let able = (0..self.frameworks.len()).filter(|&i| {
                let f = &self.frameworks[i];
                agent[0] >= f.minimum_cpu && !f.refuses[place] && self.fits(i, agent[0])
            });
            let able: Vec<_> = able.collect();
            let Some(&first) = able.iter().min_by(|&&a, &&b| self.compare(a, b)) else {
                takers.push(None);
                continue;
            };
            if able.iter().any(|&other| other != first && self.compare(other, first).is_eq()) {
                return takers;
            }
            self.turn += 1;
            for node in self.nodes(first) {
                self.turns.retain(|(n, _)| *n != node);
                self.turns.push((node, self.turn));
            }
            let held = &mut self.frameworks[first].held;
            *held = [held[0] + u128::from(agent[0]), held[1] + u128::from(agent[1])];
            takers.push(Some(first));
        }
        takers
    }
}

fn is_below(role: &str, above: &str) -> bool {
    role == above || role.starts_with(&format!("{above}/"))
}

const ROLES: [&str; 5] = ["a", "a/b", "a/c", "d", "e/f/g"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Agent by agent the same taker, until two are equal.
    #[test]
    fn the_reference_deals_the_same(
        frameworks in prop::collection::vec(
            (0usize..5, 1u64..400, prop_oneof![3 => Just(0u64), 1 => 0u64..3_000],
             prop::collection::vec(prop::bool::weighted(0.2), 12)),
            1..6,
        ),
        agents in prop::collection::vec((1_000u64..1_999, 64u64..2_000), 1..12),
        weights in prop::array::uniform3(1u32..5),
        limited in prop::option::of(0u64..15_000),
    ) {
        let weights = vec![("a", f64::from(weights[0])), ("a/c", f64::from(weights[1])), ("d", f64::from(weights[2]))];
        // The same amounts of memory are free as CPU is whole: limits on CPU either let an agent through or do not.
        let mut allocator = drf();
        for (role, w) in &weights {
            let mut settings = weight(*w);
            if let (Some(most), "a") = (limited, *role) {
                settings.limit = limit(most, u64::MAX).limit;
            }
            allocator.set_role(role, settings);
        }
        // All share one large agent that is full, so that the others are small beside every share.
        let big = [10_000_000, 10_000_000 << 20];
        let full = allocator.add_agent();
        allocator.set_agent(full, &bundle(big[0], big[1]), Pot::default());
        let mut simple = Vec::new();
        let mut numbers = Vec::new();
        for &(role, held, minimum_cpu, ref refuses) in &frameworks {
            let framework = allocator.framework_wanting(ROLES[role], wants(minimum_cpu, 0));
            let held = bundle(held, held << 10);
            allocator.set_held(framework, &Totals::from(&held));
            numbers.push(framework);
            let role = ROLES[role].split('/').collect();
            let held = [u128::from(held.0[CPU]), u128::from(held.0[MEM])];
            simple.push(Simple { role, held, minimum_cpu, refuses: [vec![true], refuses.clone()].concat() });
        }
        for (place, &(cpu, mem)) in agents.iter().enumerate() {
            let agent = allocator.agent(bundle(cpu, mem << 20));
            for (framework, &number) in frameworks.iter().zip(&numbers) {
                if framework.3[place] {
                    let idle = pot(bundle(cpu, mem << 20));
                    allocator.refuse(number, agent, ResourceClass::Guaranteed, idle, UnixMs(u64::MAX));
                }
            }
        }
        let small = agents.iter().map(|&(cpu, mem)| [cpu, mem << 20]);
        let mut reference = Reference {
            frameworks: simple,
            agents: std::iter::once(big).chain(small).collect(),
            weights,
            limits: limited.map(|most| ("a", most)).into_iter().collect(),
            turns: Vec::new(),
            turn: 0,
        };
        let expected = reference.deal();
        let made = allocator.allocate(NOW);
        let taker = |place: usize| {
            let whole = made.iter().find(|a| a.agent as usize == place);
            whole.and_then(|a| numbers.iter().position(|&n| n == a.framework))
        };
        // A limit that cuts an agent gives a part of it, which the reference does not know.
        let cut = made.iter().any(|a| a.pot.amounts.0[CPU] != agents[a.agent as usize - 1].0);
        if !cut {
            let got: Vec<_> = (0..expected.len()).map(taker).collect();
            prop_assert_eq!(got, expected);
        }
    }
}
