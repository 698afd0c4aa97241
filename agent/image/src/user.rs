//! Who `USER[:GROUP]` is within an image.
//!
//! As containers have it: a number needs no entry, and has then the group 0; a user without a group given has
//! those of `/etc/group`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use crate::{error::ImageError, root};

/// A user database larger than this is none.
const MAX_DATABASE_BYTES: u64 = 1 << 20;
/// Most supplementary groups that the kernel takes (NGROUPS_MAX).
const MAX_GROUPS: usize = 65_536;

/// Somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// User.
    pub uid: u32,
    /// Main group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory, where the image knows one.
    pub home: Option<String>,
}

/// Nobody.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Not in `/etc/passwd`.
    #[error("the image has no user {0:?}: name one of its /etc/passwd, or a number")]
    NoUser(String),
    /// Not in `/etc/group`.
    #[error("the image has no group {0:?}: name one of its /etc/group, or a number")]
    NoGroup(String),
}

/// A user could not be found.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// There is nobody of that name.
    #[error(transparent)]
    Nobody(#[from] UserError),
    /// A layer cannot be read.
    #[error(transparent)]
    Read(#[from] ImageError),
}

/// Finds a user in the databases of an image, of which these are the layers, lowest first. Blocks.
///
/// # Errors
/// [`LookupError`].
pub fn find(layers: &[PathBuf], user: &str) -> Result<Ids, LookupError> {
    let passwd = database(layers, "etc/passwd")?;
    Ok(resolve(user, &passwd, &database(layers, "etc/group")?)?)
}

/// Finds a group, as [`find`] does.
///
/// # Errors
/// [`LookupError`].
pub fn find_group(layers: &[PathBuf], name: &str) -> Result<u32, LookupError> {
    Ok(group_id(name, &database(layers, "etc/group")?)?)
}

fn database(layers: &[PathBuf], path: &str) -> Result<Vec<u8>, ImageError> {
    Ok(root::read(layers, Path::new(path), MAX_DATABASE_BYTES)?.unwrap_or_default())
}

/// The fields of one line.
fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&str>> {
    // What is no text is no entry; it does not spoil the others.
    let lines = file.split(|b| *b == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    lines.filter(|line| !line.starts_with('#')).map(|line| line.trim_end_matches('\r').split(':').collect())
}

/// An id that the kernel takes; the highest number means nobody.
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

/// Finds a user in the content of `/etc/passwd` and `/etc/group`. Pure.
///
/// # Errors
/// [`UserError`] for a name that is not there.
pub fn resolve(user: &str, passwd: &[u8], group: &[u8]) -> Result<Ids, UserError> {
    let (name, group_name) = user.split_once(':').map_or((user, None), |(user, group)| (user, Some(group)));
    let number = id(name);
    let entry = lines(passwd).find_map(|line| match line.as_slice() {
        [login, _, uid, gid, rest @ ..] => {
            let (uid, gid) = (id(uid)?, id(gid)?);
            // A name that is a number is taken for the number.
            let meant = number.map_or_else(|| *login == name && !name.is_empty(), |number| number == uid);
            let home = rest.get(1).filter(|home| home.starts_with('/')).map(|home| (*home).to_owned());
            meant.then(|| ((*login).to_owned(), uid, gid, home))
        }
        _ => None,
    });
    let (login, uid, gid, home) = match (entry, number) {
        (Some((login, uid, gid, home)), _) => (Some(login), uid, gid, home),
        (None, Some(uid)) => (None, uid, 0, None),
        (None, None) => return Err(UserError::NoUser(name.into())),
    };
    if let Some(group_name) = group_name.filter(|name| !name.is_empty()) {
        let gid = group_id(group_name, group)?;
        return Ok(Ids { uid, gid, groups: vec![gid], home });
    }
    let mut groups = BTreeSet::from([gid]);
    if let Some(login) = login {
        groups.extend(memberships(&login, group));
    }
    Ok(Ids { uid, gid, groups: groups.into_iter().take(MAX_GROUPS).collect(), home })
}

/// The number of a group, which needs no entry if it is one.
///
/// # Errors
/// [`UserError::NoGroup`].
pub fn group_id(name: &str, group: &[u8]) -> Result<u32, UserError> {
    let entry = || {
        lines(group).find_map(|line| match line.as_slice() {
            [entry, _, gid, ..] if *entry == name => id(gid),
            _ => None,
        })
    };
    id(name).or_else(entry).ok_or_else(|| UserError::NoGroup(name.into()))
}

fn memberships(login: &str, group: &[u8]) -> Vec<u32> {
    let member = |line: Vec<&str>| match line.as_slice() {
        [_, _, gid, members, ..] if members.split(',').any(|m| m == login) => id(gid),
        _ => None,
    };
    lines(group).filter_map(member).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\xff\xfe:x:1:1::/:\nbroken:x:y\nweb:x:33:44::/srv/web:/bin/sh\n99:x:7:7::relative:\n";
    const GROUP: &[u8] = b"root:x:0:\nwww:x:44:\nlogs:x:50:root,web\nssl:x:51:web\nbad:x:z:web\n";

    #[test]
    fn names_and_numbers_are_found() {
        let web = Ids { uid: 33, gid: 44, groups: vec![44, 50, 51], home: Some("/srv/web".into()) };
        assert_eq!(resolve("web", PASSWD, GROUP), Ok(web.clone()));
        assert_eq!(resolve("33", PASSWD, GROUP), Ok(web.clone()));
        assert_eq!(resolve("33:", PASSWD, GROUP), Ok(web));
        let logs = Ids { uid: 33, gid: 50, groups: vec![50], home: Some("/srv/web".into()) };
        assert_eq!(resolve("web:logs", PASSWD, GROUP), Ok(logs));
        assert_eq!(
            resolve("1234", PASSWD, GROUP),
            Ok(Ids { uid: 1234, gid: 0, groups: vec![0], home: None })
        );
        assert_eq!(resolve("1234:77", b"", b"").unwrap().gid, 77);
        // A number, whatever else is called so.
        assert_eq!(resolve("99", PASSWD, GROUP).unwrap().uid, 99);
    }

    #[test]
    fn who_is_not_there_is_named() {
        assert_eq!(resolve("", PASSWD, GROUP), Err(UserError::NoUser(String::new())));
        assert_eq!(resolve("Web", PASSWD, GROUP), Err(UserError::NoUser("Web".into())));
        assert_eq!(resolve("broken", PASSWD, GROUP), Err(UserError::NoUser("broken".into())));
        assert_eq!(resolve("-1", PASSWD, GROUP), Err(UserError::NoUser("-1".into())));
        assert_eq!(resolve("4294967295", PASSWD, GROUP), Err(UserError::NoUser("4294967295".into())));
        assert_eq!(resolve("web:bad", PASSWD, GROUP), Err(UserError::NoGroup("bad".into())));
    }

    proptest! {
        #[test]
        fn no_file_panics(user in ".{0,10}", passwd: Vec<u8>, group: Vec<u8>) {
            drop(resolve(&user, &passwd, &group));
        }
    }
}
