//! What a restarted agent does about a task that its journal remembers. Pure.

use crate::journal::replay::Remembered;

/// What the kernel says about a remembered task now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Has the host not been restarted since the task began?
    pub same_boot: bool,
    /// Is the process with its id and its start time alive?
    pub alive: bool,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// It was over: only its last status is still to be acknowledged.
    Report,
    /// Its program runs: watch it again.
    Adopt,
    /// It ended while no agent was there; the kernel may have noted how.
    Collect,
    /// The agent went away between accepting it and starting it, or the host was restarted under it.
    GiveUp,
}

/// Decides.
pub fn decide(task: &Remembered, found: Found) -> Recovery {
    match (&task.ended, &task.started) {
        (Some(_), _) => Recovery::Report,
        (None, Some(_)) if found.same_boot && found.alive => Recovery::Adopt,
        (None, Some(_)) if found.same_boot => Recovery::Collect,
        (None, _) => Recovery::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::v1::TaskStatus;

    use super::*;
    use crate::journal::{Accepted, Started};

    #[test]
    fn every_remembered_task_has_an_answer() {
        let task = |started: bool, ended: bool| Remembered {
            accepted: Accepted::default(),
            started: started.then(Started::default),
            ended: ended.then(TaskStatus::default),
            acknowledged: 0,
        };
        let found = |same_boot, alive| Found { same_boot, alive };
        assert_eq!(decide(&task(true, false), found(true, true)), Recovery::Adopt);
        assert_eq!(decide(&task(true, false), found(true, false)), Recovery::Collect);
        // After a restart of the host the same id may be anybody's.
        assert_eq!(decide(&task(true, false), found(false, true)), Recovery::GiveUp);
        assert_eq!(decide(&task(false, false), found(true, true)), Recovery::GiveUp);
        for anything in [found(true, true), found(false, false)] {
            assert_eq!(decide(&task(true, true), anything), Recovery::Report);
        }
    }
}
