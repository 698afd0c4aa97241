//! Which cores a task gets. Pure.
//!
//! Whole cores, all or nothing: of one memory node if one has room, there of one last-level cache if one has room,
//! otherwise of as few as possible. Among several that have room the fullest is taken (best fit), so that the
//! large gaps stay for those who need them; then the one with the lowest CPU, so that the answer is always the same.

use std::{cmp::Reverse, collections::BTreeMap};

use crate::{kernel::cpu_set::CpuSet, measure::topology::Core};

/// There are no such cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misfit {
    /// No number of whole cores has that many CPUs.
    #[error("{want} CPUs are no number of whole cores here: {}", nearest(*smaller, *larger))]
    Size {
        /// How many CPUs were asked for.
        want: usize,
        /// The next smaller size that there is.
        smaller: Option<usize>,
        /// The next larger one.
        larger: Option<usize>,
    },
    /// Other tasks have them.
    #[error("no free whole cores: {want} CPUs asked, {left} left (one core stays with the system)")]
    Room {
        /// How many CPUs were asked for.
        want: usize,
        /// How many are left.
        left: usize,
    },
}

fn nearest(smaller: Option<usize>, larger: Option<usize>) -> String {
    match (smaller, larger) {
        (Some(smaller), Some(larger)) => format!("ask for {smaller} or {larger}"),
        (Some(only), None) | (None, Some(only)) => format!("ask for {only}"),
        (None, None) => "this node has none to give (one core stays with the system)".to_owned(),
    }
}

/// Chooses cores with exactly `want` CPUs together from those of `all` that are not `taken`, close to `near` (the
/// CPUs that the task has already).
///
/// # Errors
/// [`Misfit`]: nothing is chosen then.
pub(super) fn place(all: &[Core], taken: &CpuSet, want: usize, near: &CpuSet) -> Result<CpuSet, Misfit> {
    let free: Cores<'_> = all.iter().filter(|core| core.cpus.intersection(taken).is_empty()).collect();
    let near: Cores<'_> = all.iter().filter(|core| !core.cpus.intersection(near).is_empty()).collect();
    if let Some(chosen) = of_nodes(&free, want, &near).or_else(|| exactly(&free, want)) {
        return Ok(chosen.iter().flat_map(|core| core.cpus.iter()).collect());
    }
    let every: Cores<'_> = all.iter().collect();
    let fits = |size: &usize| *size > 0 && exactly(&every, *size).is_some();
    if fits(&want) {
        return Err(Misfit::Room { want, left: size(&free) });
    }
    let smaller = (0..want.min(size(&every) + 1)).rev().find(fits);
    let larger = (want.saturating_add(1)..=size(&every)).find(fits);
    Err(Misfit::Size { want, smaller, larger })
}

type Cores<'a> = Vec<&'a Core>;

fn size(cores: &[&Core]) -> usize {
    cores.iter().map(|core| core.cpus.len()).sum()
}

fn of_nodes<'a>(free: &[&'a Core], want: usize, near: &[&Core]) -> Option<Cores<'a>> {
    let is_near = |core: &Core| near.iter().any(|n| n.node == core.node);
    gather(split(free, |core| core.node), want, is_near, |node, part| of_caches(node, part, near))
}

fn of_caches<'a>(free: &[&'a Core], want: usize, near: &[&Core]) -> Option<Cores<'a>> {
    let is_near = |core: &Core| near.iter().any(|n| (n.node, n.cache) == (core.node, core.cache));
    // Unlike cores may add up only across caches that each have room to spare.
    gather(split(free, |core| core.cache), want, is_near, exactly).or_else(|| exactly(free, want))
}

fn split<'a>(cores: &[&'a Core], by: impl Fn(&Core) -> u32) -> Vec<Cores<'a>> {
    let mut groups: BTreeMap<u32, Cores<'a>> = BTreeMap::new();
    for core in cores {
        groups.entry(by(core)).or_default().push(core);
    }
    groups.into_values().collect()
}

/// From the group that fits best; where none has room, the largest is used up, and so on with what is still wanted.
fn gather<'a>(
    mut groups: Vec<Cores<'a>>,
    mut want: usize,
    is_near: impl Fn(&Core) -> bool,
    choose: impl Fn(&[&'a Core], usize) -> Option<Cores<'a>>,
) -> Option<Cores<'a>> {
    let mut taken = Vec::new();
    let is_far = |group: &Cores<'_>| !group.iter().any(|core| is_near(core));
    loop {
        let fitting = groups.iter().filter_map(|group| {
            let chosen = choose(group, want)?;
            let first = group.iter().map(|core| core.cpus.first()).min();
            let rank = (is_far(group), caches(&chosen), size(group), first);
            Some((rank, chosen))
        });
        if let Some((_, chosen)) = fitting.min_by_key(|(rank, _)| *rank) {
            taken.extend(chosen);
            return Some(taken);
        }
        let (largest, _) = groups
            .iter()
            .enumerate()
            .filter(|(_, group)| size(group) < want)
            .min_by_key(|(at, group)| (is_far(group), Reverse(size(group)), *at))?;
        let group = groups.remove(largest);
        want -= size(&group);
        taken.extend(group);
    }
}

fn caches(cores: &[&Core]) -> usize {
    let mut caches: Vec<_> = cores.iter().map(|core| (core.node, core.cache)).collect();
    caches.sort_unstable();
    caches.dedup();
    caches.len()
}

/// The largest cores first: the sizes of cores divide each other (1, 2, 4, 8 threads), so this finds an exact sum
/// wherever there is one.
fn exactly<'a>(cores: &[&'a Core], want: usize) -> Option<Cores<'a>> {
    let mut by_size: Cores<'a> = cores.to_vec();
    by_size.sort_by_key(|core| (Reverse(core.cpus.len()), core.cpus.first()));
    let mut left = want;
    by_size.retain(|core| {
        let takes = core.cpus.len() <= left;
        left -= if takes { core.cpus.len() } else { 0 };
        takes
    });
    (left == 0 && want > 0).then_some(by_size)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::measure::topology::{Topology, tests::machine};

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    /// Two nodes of two caches of two cores of two threads; siblings are 8 apart.
    fn server() -> Topology {
        machine((0..8).map(|core| (vec![core, core + 8], core / 4, core / 2 * 2)))
    }

    fn on_server(taken: &str, want: usize, near: &str) -> Result<String, Misfit> {
        place(server().cores(), &set(taken), want, &set(near)).map(|cpus| cpus.to_string())
    }

    #[test]
    fn cores_come_whole_and_of_one_cache() {
        assert_eq!(on_server("", 2, ""), Ok("0,8".into()));
        assert_eq!(on_server("", 4, ""), Ok("0-1,8-9".into()));
        assert_eq!(on_server("", 8, ""), Ok("0-3,8-11".into()));
        assert_eq!(on_server("", 12, ""), Ok("0-5,8-13".into()), "a node, and one cache of the other");
    }

    #[test]
    fn the_fullest_place_with_room_is_used() {
        assert_eq!(on_server("0,8", 2, ""), Ok("1,9".into()));
        assert_eq!(on_server("0,8", 4, ""), Ok("2-3,10-11".into()));
        assert_eq!(
            on_server("0,8", 8, ""),
            Ok("4-7,12-15".into()),
            "no node is torn apart while one has room"
        );
        assert_eq!(on_server("0,8,4,12", 6, ""), Ok("1-3,9-11".into()));
    }

    #[test]
    fn one_thread_of_a_core_that_is_taken_takes_all_of_it() {
        assert_eq!(on_server("0-3", 8, ""), Ok("4-7,12-15".into()));
        assert_eq!(on_server("0-7", 2, ""), Err(Misfit::Room { want: 2, left: 0 }));
    }

    #[test]
    fn a_task_grows_beside_itself() {
        assert_eq!(on_server("4,12", 2, "4,12"), Ok("5,13".into()));
        assert_eq!(on_server("4-5,12-13", 4, "4-5,12-13"), Ok("6-7,14-15".into()));
    }

    #[test]
    fn half_cores_are_refused_with_the_sizes_beside() {
        let size = |want, smaller, larger| Err(Misfit::Size { want, smaller, larger });
        assert_eq!(on_server("", 3, ""), size(3, Some(2), Some(4)));
        assert_eq!(on_server("", 1, ""), size(1, None, Some(2)));
        assert_eq!(on_server("", 17, ""), size(17, Some(16), None));
        assert_eq!(on_server("", usize::MAX, ""), size(usize::MAX, Some(16), None));
        let text = on_server("", 3, "").unwrap_err().to_string();
        assert!(text.contains("ask for 2 or 4"), "{text}");
        let nothing = Misfit::Size { want: 1, smaller: None, larger: None };
        assert_eq!(place(&[], &set(""), 1, &set("")), Err(nothing));
    }

    #[test]
    fn unlike_cores_are_combined() {
        let hybrid = machine([(vec![0, 1], 0, 0), (vec![2, 3], 0, 0), (vec![4], 0, 4), (vec![5], 0, 4)]);
        let place =
            |taken: &str, want| place(hybrid.cores(), &set(taken), want, &set("")).unwrap().to_string();
        assert_eq!(place("", 1), "4");
        assert_eq!(place("", 3), "0-1,4");
        assert_eq!(place("0", 3), "2-4");
        assert_eq!(place("", 5), "0-4");
    }

    /// Any machine: its cores' threads, spread over nodes and caches, numbered in any order.
    fn machines() -> impl Strategy<Value = Topology> {
        let shape =
            prop::collection::vec((0..3u32, 0..3u32, prop::sample::select(vec![1usize, 2, 4])), 1..20);
        (shape, any::<u64>()).prop_map(|(cores, seed)| {
            let total: usize = cores.iter().map(|(_, _, threads)| threads).sum();
            let mut numbers: Vec<u32> = (0..total).map(|n| u32::try_from(n).unwrap()).collect();
            // A stride that is coprime to the length visits every number once.
            if !total.is_multiple_of(7) && seed.is_multiple_of(2) {
                numbers = (0..total).map(|n| numbers[n * 7 % total]).collect();
            }
            let mut numbers = numbers.into_iter();
            machine(cores.into_iter().map(|(node, cache, threads)| {
                (numbers.by_ref().take(threads).collect(), node, node * 100 + cache)
            }))
        })
    }

    fn whole_cores(machine: &Topology, cpus: &CpuSet) -> bool {
        machine.cores().iter().all(|c| c.cpus.is_subset(cpus) || c.cpus.intersection(cpus).is_empty())
    }

    proptest! {
        #[test]
        fn tasks_come_and_go_and_never_share_a_core(
            machine in machines(),
            steps in prop::collection::vec((1..8usize, any::<bool>()), 1..40),
        ) {
            let mut held: Vec<CpuSet> = Vec::new();
            for (want, leaves) in steps {
                if leaves && !held.is_empty() {
                    held.remove(want % held.len());
                    continue;
                }
                let taken = held.iter().fold(CpuSet::default(), |all, one| all.union(one));
                let free: Vec<_> =
                    machine.cores().iter().filter(|c| c.cpus.intersection(&taken).is_empty()).collect();
                match place(machine.cores(), &taken, want, &CpuSet::default()) {
                    Ok(cpus) => {
                        prop_assert_eq!(cpus.len(), want);
                        prop_assert!(cpus.is_subset(&machine.cpus()) && cpus.intersection(&taken).is_empty());
                        prop_assert!(whole_cores(&machine, &cpus));
                        held.push(cpus);
                    }
                    // All or nothing: it is refused only where no choice of free cores has that size.
                    Err(_) => prop_assert!(exactly(&free, want).is_none()),
                }
            }
        }

        #[test]
        fn no_node_and_no_cache_is_left_while_one_has_room(machine in machines(), want in 1..10usize) {
            let Ok(cpus) = place(machine.cores(), &CpuSet::default(), want, &CpuSet::default()) else {
                return Ok(());
            };
            let all: Vec<_> = machine.cores().iter().collect();
            let used: Vec<_> = all.iter().copied().filter(|c| c.cpus.is_subset(&cpus)).collect();
            let fits = |groups: Vec<Cores<'_>>| groups.iter().any(|g| exactly(g, want).is_some());
            if fits(split(&all, |c| c.node)) {
                prop_assert_eq!(split(&used, |c| c.node).len(), 1);
            }
            if split(&all, |c| c.node).iter().any(|node| fits(split(node, |c| c.cache))) {
                prop_assert_eq!(caches(&used), 1);
            }
        }

        #[test]
        fn the_answer_does_not_depend_on_the_order_of_cores(machine in machines(), want in 1..10usize) {
            let mut turned = machine.cores().to_vec();
            turned.reverse();
            let place = |cores: &[Core]| place(cores, &CpuSet::default(), want, &CpuSet::default());
            prop_assert_eq!(place(machine.cores()), place(&turned));
        }
    }
}
