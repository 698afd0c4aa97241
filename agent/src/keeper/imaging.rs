//! A launch's image: before its sandbox.

use bulkhead_image::{Lease, Progress, Reference, Store};
use tokio::sync::watch;

use super::Keeper;
use crate::{
    launch::{LaunchError, image::RootImage},
    offer::ledger::TaskKey,
    task::KillRequest,
};

/// What one task's root directory comes from.
pub(super) struct Imaging {
    pub(super) store: Store,
    /// As the task names it; none keeps the host's root.
    pub(super) reference: Option<Reference>,
    /// How far it is, for the local API.
    pub(super) progress: watch::Sender<Progress>,
    /// Ends it early.
    pub(super) killed: watch::Receiver<Option<KillRequest>>,
}

/// A root directory, and what keeps its layers.
pub(super) type Root = (RootImage, Lease);

impl Imaging {
    /// Brings the image in.
    ///
    /// # Errors
    /// [`LaunchError::Image`], or [`LaunchError::Killed`] when the task was killed meanwhile.
    pub(super) async fn fetch(mut self) -> Result<Option<Root>, LaunchError> {
        let Some(reference) = self.reference else { return Ok(None) };
        let progress = self.progress;
        let report = std::sync::Arc::new(move |now| {
            progress.send_replace(now);
        });
        let killed = async {
            if self.killed.wait_for(Option::is_some).await.is_err() {
                // The task is not kept any more, so nobody can want it to end.
                std::future::pending().await
            }
        };
        tokio::select! {
            biased;
            () = killed => Err(LaunchError::Killed),
            fetched = self.store.get(&reference, report) => {
                let (unpacked, lease) = fetched.map_err(|e| LaunchError::Image(Box::new(e)))?;
                Ok(Some((RootImage::from(unpacked), lease)))
            }
        }
    }
}

impl Keeper {
    /// What will be the task's root directory; a kill ends the fetching of it.
    pub(super) fn imaging(&mut self, key: &TaskKey, reference: Option<Reference>) -> Imaging {
        let (progress, watched) = watch::channel(Progress::default());
        let killed = match self.live.get_mut(key) {
            Some(live) => {
                live.imaging = reference.is_some().then_some(watched);
                live.kill_early.subscribe()
            }
            None => watch::channel(None).1,
        };
        Imaging { store: self.parts.images.clone(), reference, progress, killed }
    }

    /// Keeps the layers of a task that outlived the agent before this one.
    pub(super) fn adopt_image(&mut self, key: &TaskKey, image: &str) {
        if image.is_empty() {
            return;
        }
        let lease = image.parse().ok().and_then(|digest| self.parts.images.adopt(&digest));
        if lease.is_none() {
            tracing::error!(task = key.1, image, "the image of a running task is not in the store any more");
        }
        if let Some(live) = self.live.get_mut(key) {
            live.image = lease;
        }
    }
}

/// For people: how far an image is.
pub(super) fn words(progress: Progress) -> String {
    let Progress { done_bytes, total_bytes, done_layers, total_layers } = progress;
    if total_layers == 0 {
        return "image: looking it up".to_owned();
    }
    let (done, total) = (bytesize::ByteSize::b(done_bytes), bytesize::ByteSize::b(total_bytes));
    format!("image: {done_layers} of {total_layers} layers, {done} of {total}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_layers_and_bytes() {
        assert_eq!(words(Progress::default()), "image: looking it up");
        let progress =
            Progress { done_bytes: 1 << 20, total_bytes: 4 << 20, done_layers: 1, total_layers: 3 };
        assert_eq!(words(progress), "image: 1 of 3 layers, 1.0 MiB of 4.0 MiB");
    }
}
