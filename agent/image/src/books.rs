//! What the store holds, who uses it, and what has to go when there is no room. Pure.
//!
//! Invariants, which the tests check:
//! - What is held and what is being unpacked never exceed the bound.
//! - A layer that somebody uses is never told to be removed.
//! - An image that is listed has all its layers.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_stage::Digest;

/// There is no room, and nothing that may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full {
    /// What cannot be removed now.
    pub(crate) used_bytes: u64,
}

/// What must be removed from the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    /// By the digests of their configurations.
    pub(crate) images: Vec<Digest>,
    pub(crate) layers: Vec<Digest>,
}

/// An image, known by its configuration's digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// Lowest first.
    pub(crate) layers: Vec<Digest>,
    /// When it was last asked for; larger is later.
    pub(crate) used: u64,
}

/// The books of one store.
#[derive(Debug)]
pub(crate) struct Books {
    bound_bytes: u64,
    images: BTreeMap<Digest, Image>,
    /// Bytes of each layer.
    layers: BTreeMap<Digest, u64>,
    /// How many leases name a layer, there or on its way.
    leases: BTreeMap<Digest, usize>,
    /// Taken by layers on their way.
    pending_bytes: u64,
}

impl Books {
    pub(crate) fn new(bound_bytes: u64) -> Self {
        Self {
            bound_bytes,
            images: BTreeMap::new(),
            layers: BTreeMap::new(),
            leases: BTreeMap::new(),
            pending_bytes: 0,
        }
    }

    pub(crate) fn bound_bytes(&self) -> u64 {
        self.bound_bytes
    }

    /// What is on the disk, and what is on its way there.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.layers.values().sum::<u64>().saturating_add(self.pending_bytes)
    }

    pub(crate) fn has_layer(&self, layer: &Digest) -> bool {
        self.layers.contains_key(layer)
    }

    pub(crate) fn layer_bytes(&self, layer: &Digest) -> u64 {
        self.layers.get(layer).copied().unwrap_or(0)
    }

    pub(crate) fn image(&self, image: &Digest) -> Option<&Image> {
        self.images.get(image)
    }

    /// A layer is on the disk. `pending` of its bytes were taken before.
    pub(crate) fn add_layer(&mut self, layer: Digest, bytes: u64, pending: u64) {
        self.give_back(pending);
        self.layers.insert(layer, bytes);
    }

    /// An image is on the disk; false, and nothing is done, where one of its layers is not.
    pub(crate) fn add_image(&mut self, image: Digest, record: Image) -> bool {
        let whole = record.layers.iter().all(|layer| self.layers.contains_key(layer));
        if whole {
            self.images.insert(image, record);
        }
        whole
    }

    /// Somebody uses these layers from now on.
    pub(crate) fn lease(&mut self, layers: &[Digest]) {
        for layer in layers {
            *self.leases.entry(layer.clone()).or_default() += 1;
        }
    }

    /// The end of one [`Books::lease`].
    pub(crate) fn release(&mut self, layers: &[Digest]) {
        for layer in layers {
            if let Some(count) = self.leases.get_mut(layer) {
                *count = count.saturating_sub(1);
            }
        }
        self.leases.retain(|_, count| *count > 0);
    }

    /// Room for a layer on its way. What has to go for it is taken off the books.
    pub(crate) fn take(&mut self, bytes: u64) -> Result<Removed, Full> {
        let over = |books: &Self| books.used_bytes().saturating_add(bytes) > books.bound_bytes;
        let mut removed = Removed::default();
        if over(self) {
            let fixed = self.fixed_bytes();
            if fixed.saturating_add(bytes) > self.bound_bytes {
                return Err(Full { used_bytes: fixed });
            }
            self.remove_loose(&mut removed.layers);
        }
        while over(self) {
            let idle = |image: &Image| image.layers.iter().any(|layer| !self.leases.contains_key(layer));
            let oldest = self.images.iter().filter(|(_, image)| idle(image)).min_by_key(|(_, i)| i.used);
            let Some(oldest) = oldest.map(|(digest, _)| digest.clone()) else {
                return Err(Full { used_bytes: self.fixed_bytes() });
            };
            self.images.remove(&oldest);
            removed.images.push(oldest);
            self.remove_loose(&mut removed.layers);
        }
        self.pending_bytes = self.pending_bytes.saturating_add(bytes);
        Ok(removed)
    }

    /// What [`Books::take`] took was not used.
    pub(crate) fn give_back(&mut self, bytes: u64) {
        self.pending_bytes = self.pending_bytes.saturating_sub(bytes);
    }

    /// What cannot be removed now.
    fn fixed_bytes(&self) -> u64 {
        let leased = self.layers.iter().filter(|(layer, _)| self.leases.contains_key(*layer));
        leased.map(|(_, bytes)| *bytes).sum::<u64>().saturating_add(self.pending_bytes)
    }

    /// Takes layers off the books that no image has and nobody uses.
    fn remove_loose(&mut self, removed: &mut Vec<Digest>) {
        let of_images: BTreeSet<&Digest> = self.images.values().flat_map(|image| &image.layers).collect();
        let loose = |layer: &&Digest| !of_images.contains(layer) && !self.leases.contains_key(layer);
        let loose: Vec<Digest> = self.layers.keys().filter(loose).cloned().collect();
        for layer in loose {
            self.layers.remove(&layer);
            removed.push(layer);
        }
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_stage::digest::Algorithm;
    use proptest::prelude::*;

    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::of(Algorithm::Sha256, &[n])
    }

    fn image(layers: &[u8], used: u64) -> Image {
        Image { layers: layers.iter().map(|n| digest(*n)).collect(), used }
    }

    fn filled() -> Books {
        let mut books = Books::new(100);
        for n in 1..=4 {
            books.add_layer(digest(n), 20, 0);
        }
        assert!(books.add_image(digest(101), image(&[1, 2], 7)));
        assert!(books.add_image(digest(102), image(&[1, 3], 5)));
        assert!(books.add_image(digest(103), image(&[4], 6)));
        assert!(!books.add_image(digest(104), image(&[9], 1)));
        books
    }

    #[test]
    fn the_image_that_was_longest_unused_goes_and_shared_layers_stay() {
        let mut books = filled();
        assert_eq!(books.take(20), Ok(Removed::default()));
        let removed = books.take(20).unwrap();
        assert_eq!(removed, Removed { images: vec![digest(102)], layers: vec![digest(3)] });
        let removed = books.take(40).unwrap();
        assert_eq!(removed.images, [digest(103), digest(101)]);
        assert_eq!(books.used_bytes(), 80);
    }

    #[test]
    fn what_is_used_stays_and_what_does_not_fit_changes_nothing() {
        let mut books = filled();
        let used = image(&[1, 3], 0).layers;
        books.lease(&used);
        books.lease(&used);
        assert_eq!(books.take(61), Err(Full { used_bytes: 40 }));
        assert_eq!(books.used_bytes(), 80);
        books.release(&used);
        let removed = books.take(60).unwrap();
        assert_eq!(removed.images, [digest(103), digest(101)]);
        assert!(books.has_layer(&digest(1)) && books.has_layer(&digest(3)));
        books.give_back(60);
        books.release(&used);
        let removed = books.take(100).unwrap();
        assert_eq!(removed.images, [digest(102)]);
        assert_eq!(books.used_bytes(), 100);
    }

    #[test]
    fn layers_that_no_image_has_go_first() {
        let mut books = filled();
        books.add_layer(digest(9), 20, 0);
        assert_eq!(books.take(10).unwrap(), Removed { images: vec![], layers: vec![digest(9)] });
    }

    #[derive(Clone, Debug)]
    enum Step {
        Layer(u8, u8),
        Image(u8, Vec<u8>, u64),
        Lease(Vec<u8>),
        Release(usize),
        Take(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        let layers = || proptest::collection::vec(0..6_u8, 1..4);
        prop_oneof![
            (0..6_u8, 0..60_u8).prop_map(|(n, bytes)| Step::Layer(n, bytes)),
            (0..6_u8, layers(), 0..9_u64).prop_map(|(n, layers, used)| Step::Image(n, layers, used)),
            layers().prop_map(Step::Lease),
            (0..4_usize).prop_map(Step::Release),
            any::<u8>().prop_map(Step::Take),
        ]
    }

    proptest! {
        #[test]
        fn the_bound_holds_and_used_layers_stay(steps in proptest::collection::vec(step(), 0..60)) {
            let mut books = Books::new(100);
            let mut leases: Vec<Vec<Digest>> = Vec::new();
            for step in steps {
                match step {
                    Step::Layer(n, bytes) if !books.has_layer(&digest(n)) => {
                        if books.take(bytes.into()).is_ok() {
                            books.add_layer(digest(n), bytes.into(), bytes.into());
                        }
                    }
                    Step::Layer(..) => {}
                    Step::Image(n, layers, used) => drop(books.add_image(digest(100 + n), image(&layers, used))),
                    Step::Lease(layers) => {
                        leases.push(image(&layers, 0).layers);
                        books.lease(leases.last().unwrap());
                    }
                    Step::Release(n) if n < leases.len() => books.release(&leases.swap_remove(n)),
                    Step::Release(_) => {}
                    Step::Take(bytes) => {
                        let before = books.used_bytes();
                        match books.take(bytes.into()) {
                            Ok(removed) => {
                                for layer in &removed.layers {
                                    prop_assert!(!leases.iter().flatten().any(|l| l == layer));
                                }
                                books.give_back(bytes.into());
                            }
                            Err(_) => prop_assert_eq!(books.used_bytes(), before),
                        }
                    }
                }
                prop_assert!(books.used_bytes() <= 100);
                for image in books.images.values() {
                    prop_assert!(image.layers.iter().all(|l| books.has_layer(l)));
                }
            }
        }
    }
}
