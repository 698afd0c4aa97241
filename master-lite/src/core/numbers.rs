//! Which numbers the allocator gave to whom.

use std::{collections::HashMap, hash::Hash};

use crate::ids::{AgentId, FrameworkId};

/// The allocator's numbers of agents and frameworks.
#[derive(Default)]
pub(super) struct Numbers {
    pub(super) agents: Names<AgentId>,
    pub(super) frameworks: Names<FrameworkId>,
}

/// Names and their numbers.
pub(super) struct Names<K> {
    numbers: HashMap<K, u32>,
    names: Vec<Option<K>>,
}

impl<K> Default for Names<K> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), names: Vec::new() }
    }
}

impl<K: Clone + Eq + Hash> Names<K> {
    pub(super) fn get(&self, name: &K) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    pub(super) fn name(&self, number: u32) -> Option<&K> {
        self.names.get(number as usize)?.as_ref()
    }

    pub(super) fn get_or_add(&mut self, name: &K, number: impl FnOnce() -> u32) -> u32 {
        if let Some(number) = self.get(name) {
            return number;
        }
        let number = number();
        let place = number as usize;
        if self.names.len() <= place {
            self.names.resize_with(place + 1, || None);
        }
        self.names[place] = Some(name.clone());
        self.numbers.insert(name.clone(), number);
        number
    }

    pub(super) fn remove(&mut self, name: &K) -> Option<u32> {
        let number = self.numbers.remove(name)?;
        self.names[number as usize] = None;
        Some(number)
    }
}
