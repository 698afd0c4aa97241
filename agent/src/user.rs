//! User names become ids here: the host's, and those of an image.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use crate::{kernel::spawn::Identity, launch::image::RootImage};

/// Nobody a task can run as.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// Not in the user database.
    #[error("there is no user {0:?} on this host: create it, or name another with --user")]
    Unknown(String),
    /// Not in the image.
    #[error(transparent)]
    Image(#[from] bulkhead_image::user::LookupError),
    /// Not in the group database.
    #[error("there is no group {0:?}")]
    UnknownGroup(String),
    /// A group that the user is not in.
    #[error(
        "user {user:?} is not in group {group:?}: leave it out, or set allow_trusted_tasks in the agent's configuration"
    )]
    ForeignGroup {
        /// Whom the task runs as.
        user: String,
        /// Which group it asked for.
        group: String,
    },
    /// The user database did not answer.
    #[error("look up {name:?}")]
    Lookup {
        /// Who was looked for.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// Root, which the agent was not told to allow.
    #[error(
        "tasks may not run as {0:?} here: name another user, give the task a user namespace, or set allow_root_tasks in the agent's configuration"
    )]
    Root(String),
}

impl UserError {
    /// Is it a group that the task may not have?
    pub fn is_about_a_group(&self) -> bool {
        use bulkhead_image::user::{LookupError::Nobody, UserError::NoGroup};
        matches!(self, Self::ForeignGroup { .. } | Self::UnknownGroup(_) | Self::Image(Nobody(NoGroup(_))))
    }
}

/// How long an answer of the user database is used again. It may come over a network, and every launch needs it.
const FRESH: Duration = Duration::from_secs(10);
/// Answers that are kept.
const CACHED: usize = 1024;

/// The host's user database, asked once for what is asked often. May ask the network (NSS), so it blocks.
#[derive(Debug, Default)]
pub struct Users {
    known: Mutex<HashMap<String, (Instant, Identity)>>,
}

impl Users {
    /// The ids and groups of a user of the host, by name or by number.
    ///
    /// # Errors
    /// [`UserError::Unknown`], [`UserError::Lookup`].
    pub fn host(&self, name: &str) -> Result<Identity, UserError> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, identity)) = known().get(name).filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(identity.clone());
        }
        let identity = look_up(name)?;
        let mut known = known();
        if known.len() >= CACHED {
            known.clear();
        }
        known.insert(name.to_owned(), (Instant::now(), identity.clone()));
        Ok(identity)
    }
}

fn look_up(name: &str) -> Result<Identity, UserError> {
    let lookup = |source: nix::Error| UserError::Lookup { name: name.into(), source: source.into() };
    let found = match name.parse::<u32>() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(name),
    };
    let user = found.map_err(lookup)?.ok_or_else(|| UserError::Unknown(name.into()))?;
    let cname = std::ffi::CString::new(user.name.as_str()).map_err(|_| UserError::Unknown(name.into()))?;
    let groups = getgrouplist(&cname, user.gid).map_err(lookup)?;
    let groups = groups.into_iter().map(Gid::as_raw).collect();
    Ok(Identity { uid: user.uid.as_raw(), gid: user.gid.as_raw(), groups })
}

/// The id of a group of the host, by name or by number.
///
/// # Errors
/// [`UserError::UnknownGroup`], [`UserError::Lookup`].
pub fn host_group(name: &str) -> Result<u32, UserError> {
    if let Ok(gid) = name.parse() {
        return Ok(gid);
    }
    let found = Group::from_name(name)
        .map_err(|source| UserError::Lookup { name: name.into(), source: source.into() })?;
    found.map(|group| group.gid.as_raw()).ok_or_else(|| UserError::UnknownGroup(name.into()))
}

/// The ids and groups of `USER[:GROUP]` by the databases of an image. A number needs no entry there.
///
/// # Errors
/// [`UserError::Image`].
pub fn in_image(image: &RootImage, spec: &str) -> Result<Identity, UserError> {
    let ids = bulkhead_image::user::find(&image.layers, spec)?;
    Ok(Identity { uid: ids.uid, gid: ids.gid, groups: ids.groups })
}

/// The id of a group of an image, by name or by number.
///
/// # Errors
/// [`UserError::Image`].
pub fn image_group(image: &RootImage, name: &str) -> Result<u32, UserError> {
    Ok(bulkhead_image::user::find_group(&image.layers, name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_mean_the_same() {
        let users = Users::default();
        assert_eq!(users.host("root").unwrap(), users.host("0").unwrap());
        assert_eq!(users.host("root").unwrap().uid, 0);
        assert_eq!(host_group("root").unwrap(), 0);
        assert_eq!(host_group("12345").unwrap(), 12345);
    }

    #[test]
    fn who_is_not_there_is_named() {
        let users = Users::default();
        for name in ["no-such-user-here", "4000000000"] {
            assert!(matches!(users.host(name), Err(UserError::Unknown(n)) if n == name));
        }
        assert!(matches!(host_group("no-such-group"), Err(UserError::UnknownGroup(_))));
    }
}
