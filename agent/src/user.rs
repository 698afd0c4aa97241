//! User names become ids here.

use nix::unistd::{Gid, Uid, User, getgrouplist};

use crate::kernel::spawn::Identity;

/// Nobody a task can run as.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// Not in the user database.
    #[error("there is no user {0:?} on this host: create it, or name another with --user")]
    Unknown(String),
    /// The user database did not answer.
    #[error("look up user {name:?}")]
    Lookup {
        /// Who was looked for.
        name: String,
        /// Why.
        source: nix::Error,
    },
    /// Root, which the agent was not told to allow.
    #[error(
        "tasks may not run as {0:?} here: name another user, or set allow_root_tasks in the agent's configuration"
    )]
    Root(String),
}

/// The ids and groups of a user, by name or by number. May ask the network (NSS), so it blocks.
///
/// # Errors
/// [`UserError`].
pub fn resolve(name: &str, allow_root: bool) -> Result<Identity, UserError> {
    let lookup = |source| UserError::Lookup { name: name.into(), source };
    let found = match name.parse::<u32>() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(name),
    };
    let user = found.map_err(lookup)?.ok_or_else(|| UserError::Unknown(name.into()))?;
    if user.uid.is_root() && !allow_root {
        return Err(UserError::Root(name.into()));
    }
    let cname = std::ffi::CString::new(user.name.as_str()).map_err(|_| UserError::Unknown(name.into()))?;
    let groups = getgrouplist(&cname, user.gid).map_err(lookup)?;
    let groups = groups.into_iter().map(Gid::as_raw).collect();
    Ok(Identity { uid: user.uid.as_raw(), gid: user.gid.as_raw(), groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_mean_the_same() {
        assert_eq!(resolve("root", true).unwrap(), resolve("0", true).unwrap());
        assert_eq!(resolve("root", true).unwrap().uid, 0);
    }

    #[test]
    fn who_is_not_there_or_not_allowed_is_named() {
        assert!(
            matches!(resolve("no-such-user-here", true), Err(UserError::Unknown(n)) if n == "no-such-user-here")
        );
        assert!(matches!(resolve("4000000000", true), Err(UserError::Unknown(_))));
        assert!(matches!(resolve("root", false), Err(UserError::Root(_))));
    }
}
