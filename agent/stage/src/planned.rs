//! What will be done with an artifact, from its description alone. Pure.

use std::path::{Path, PathBuf};

use bulkhead_proto::v1::Artifact;
use reqwest::Url;

use crate::{
    beneath::{BadPath, Inside},
    digest::{Digest, DigestError},
};

/// More artifacts than this are a mistake, or an archive that was not made.
const MAX_ARTIFACTS: usize = 256;
/// Longest uri.
const MAX_URI_BYTES: usize = 4096;
/// Endings of names that are unpacked unless the artifact says otherwise.
const ARCHIVES: [&str; 6] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".zip"];

/// Where an artifact's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file of this host, by its absolute path.
    Local(PathBuf),
    /// http or https.
    Web(Url),
}

/// What becomes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One file.
    File {
        /// Its name.
        at: Inside,
        /// May it be executed?
        executable: bool,
    },
    /// An archive is unpacked.
    Unpacked {
        /// Below this directory; without, the sandbox itself.
        below: Option<Inside>,
    },
}

/// A checked artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// For messages: without user, password and query, which may be secrets.
    pub shown: String,
    /// Where from.
    pub source: Source,
    /// What it has to be.
    pub digest: Option<Digest>,
    /// Where to.
    pub target: Target,
}

/// An artifact that can be staged nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("artifact {shown:?}: {problem}")]
pub struct ArtifactError {
    /// Its uri, without secrets.
    pub shown: String,
    /// What is wrong with it.
    #[source]
    pub problem: ArtifactProblem,
}

/// What is wrong with an artifact, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArtifactProblem {
    /// No absolute path and no uri of a known scheme.
    #[error("write an absolute path of the agent's host, or a file://, http:// or https:// uri")]
    Uri,
    /// `digest` is none.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// Anybody on the way could change it.
    #[error("http needs a digest (sha256:HEX or sha512:HEX): anybody on the way could change the content")]
    NoDigest,
    /// `path` leaves the sandbox.
    #[error("its path {path:?} {problem}")]
    Path {
        /// As it was given.
        path: String,
        /// What is wrong with it.
        #[source]
        problem: BadPath,
    },
    /// There is no name to take.
    #[error("its uri does not end in a name: say with `path` where it goes")]
    NoName,
    /// Archives keep the modes that are in them.
    #[error("`executable` is for a file that is not unpacked")]
    Executable,
    /// Two artifacts would write to one place.
    #[error("another artifact goes to {0:?} too")]
    Twice(PathBuf),
    /// A list without end.
    #[error("a task has at most {MAX_ARTIFACTS} artifacts: pack them into an archive")]
    TooMany,
}

/// Checks the artifacts of a task.
///
/// # Errors
/// The first that is malformed, or that goes where an earlier one does.
pub fn check_all(artifacts: &[Artifact]) -> Result<Vec<Planned>, ArtifactError> {
    if let Some(artifact) = artifacts.get(MAX_ARTIFACTS) {
        return Err(ArtifactError { shown: shown(&artifact.uri), problem: ArtifactProblem::TooMany });
    }
    let mut planned: Vec<Planned> = Vec::new();
    for artifact in artifacts {
        let next = check(artifact)?;
        if let Target::File { at, .. } = &next.target
            && planned.iter().any(|p| matches!(&p.target, Target::File { at: taken, .. } if taken == at))
        {
            let problem = ArtifactProblem::Twice(at.as_path().to_owned());
            return Err(ArtifactError { shown: next.shown, problem });
        }
        planned.push(next);
    }
    Ok(planned)
}

/// Checks one artifact.
///
/// # Errors
/// [`ArtifactError`] says what is wrong with it and what would be right.
pub fn check(artifact: &Artifact) -> Result<Planned, ArtifactError> {
    let shown = shown(&artifact.uri);
    let plan = || {
        let (source, name) = source(&artifact.uri)?;
        let digest = if artifact.digest.is_empty() { None } else { Some(artifact.digest.parse()?) };
        if digest.is_none() && matches!(&source, Source::Web(url) if url.scheme() == "http") {
            return Err(ArtifactProblem::NoDigest);
        }
        let unpack = artifact.unpack.unwrap_or_else(|| is_archive(&name));
        let target = target(artifact, &name, unpack)?;
        Ok((source, digest, target))
    };
    match plan() {
        Ok((source, digest, target)) => Ok(Planned { shown, source, digest, target }),
        Err(problem) => Err(ArtifactError { shown, problem }),
    }
}

fn is_archive(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ARCHIVES.iter().any(|ending| name.ends_with(ending))
}

/// Where from, and the last part of the name.
fn source(uri: &str) -> Result<(Source, String), ArtifactProblem> {
    if uri.len() > MAX_URI_BYTES || uri.contains('\0') {
        return Err(ArtifactProblem::Uri);
    }
    if uri.starts_with('/') {
        return Ok((Source::Local(uri.into()), last_part(Path::new(uri))));
    }
    let url = Url::parse(uri).map_err(|_| ArtifactProblem::Uri)?;
    match url.scheme() {
        "file" => {
            let path = url.to_file_path().map_err(|()| ArtifactProblem::Uri)?;
            let name = last_part(&path);
            Ok((Source::Local(path), name))
        }
        "http" | "https" if url.has_host() => {
            let name = decoded(url.path());
            Ok((Source::Web(url), name))
        }
        _ => Err(ArtifactProblem::Uri),
    }
}

fn last_part(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The last part of a url's path without its percent signs; empty where that is no plain name.
fn decoded(path: &str) -> String {
    let last = path.rsplit('/').next().unwrap_or_default();
    let Some(path) = Url::parse(&format!("file:///{last}")).ok().and_then(|u| u.to_file_path().ok()) else {
        return String::new();
    };
    // An escaped slash makes it more than a name.
    if path.components().count() == 2 { last_part(&path) } else { String::new() }
}

fn target(artifact: &Artifact, name: &str, unpack: bool) -> Result<Target, ArtifactProblem> {
    let inside = |path: &str| {
        Inside::new(path).map_err(|problem| ArtifactProblem::Path { path: path.to_owned(), problem })
    };
    if unpack {
        if artifact.executable {
            return Err(ArtifactProblem::Executable);
        }
        // "." is the sandbox itself.
        let here = artifact.path.is_empty() || artifact.path == "." || artifact.path == "./";
        return Ok(Target::Unpacked { below: if here { None } else { Some(inside(&artifact.path)?) } });
    }
    let path = if artifact.path.is_empty() { name } else { &artifact.path };
    if path.is_empty() {
        return Err(ArtifactProblem::NoName);
    }
    Ok(Target::File { at: inside(path)?, executable: artifact.executable })
}

/// A uri without what may be a secret.
fn shown(uri: &str) -> String {
    match Url::parse(uri) {
        Ok(mut url) if url.has_host() => {
            let had_query = url.query().is_some();
            url.set_query(None);
            url.set_fragment(None);
            // Both fail only for urls that have neither.
            let _none = url.set_username("");
            let _none = url.set_password(None);
            if had_query { format!("{url}?...") } else { url.into() }
        }
        _ => uri.chars().take(256).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn artifact(uri: &str) -> Artifact {
        Artifact { uri: uri.into(), ..Artifact::default() }
    }

    fn file(at: &str) -> Target {
        Target::File { at: Inside::new(at).unwrap(), executable: false }
    }

    #[test]
    fn the_name_decides_where_nothing_is_said() {
        let target = |uri: &str| check(&artifact(uri)).unwrap().target;
        assert_eq!(target("/srv/tools/run.sh"), file("run.sh"));
        assert_eq!(target("file:///srv/a%20b"), file("a b"));
        assert_eq!(target("https://h/x/y%2Bz?token=1"), file("y+z"));
        for archive in ["a.tar", "a.tar.gz", "a.TGZ", "a.tar.zst", "a.tzst", "a.zip"] {
            assert_eq!(target(&format!("/srv/{archive}")), Target::Unpacked { below: None });
        }
        let kept = Artifact { unpack: Some(false), ..artifact("/srv/a.tar") };
        assert_eq!(check(&kept).unwrap().target, file("a.tar"));
        let below = Artifact { unpack: Some(true), path: "lib".into(), ..artifact("https://h/latest") };
        let below = check(&below).unwrap().target;
        assert_eq!(below, Target::Unpacked { below: Some(Inside::new("lib").unwrap()) });
    }

    #[test]
    fn what_is_malformed_is_named() {
        let problem = |a: Artifact| check(&a).unwrap_err().problem;
        for uri in ["", "relative", "ftp://h/x", "file://host/x", "http:///", "s3://b/k", "/a\0b"] {
            assert_eq!(problem(artifact(uri)), ArtifactProblem::Uri, "{uri:?}");
        }
        assert_eq!(problem(artifact("http://h/x")), ArtifactProblem::NoDigest);
        assert_eq!(problem(artifact("https://h/")), ArtifactProblem::NoName);
        assert_eq!(problem(artifact("https://h/..%2Fx")), ArtifactProblem::NoName);
        let digest = Artifact { digest: "md5:1".into(), ..artifact("/x") };
        assert!(matches!(problem(digest), ArtifactProblem::Digest(_)));
        for (path, why) in
            [("../x", BadPath::Parent), ("/etc/x", BadPath::Absolute), ("a/../../x", BadPath::Parent)]
        {
            let leaves = Artifact { path: path.into(), ..artifact("/x") };
            assert_eq!(problem(leaves), ArtifactProblem::Path { path: path.into(), problem: why });
        }
        let both = Artifact { executable: true, ..artifact("/x.zip") };
        assert_eq!(problem(both), ArtifactProblem::Executable);
    }

    #[test]
    fn two_files_cannot_go_to_one_place() {
        let second = Artifact { path: "./x".into(), ..artifact("/b/y") };
        let error = check_all(&[artifact("/a/x"), second]).unwrap_err();
        assert_eq!(error.problem, ArtifactProblem::Twice("x".into()));
        let many = vec![artifact("/a.tar"); MAX_ARTIFACTS + 1];
        assert_eq!(check_all(&many).unwrap_err().problem, ArtifactProblem::TooMany);
    }

    #[test]
    fn secrets_are_not_shown() {
        let with = Artifact { digest: DIGEST.into(), ..artifact("http://me:pw@h/x?token=s#f") };
        assert_eq!(check(&with).unwrap().shown, "http://h/x?...");
    }

    proptest! {
        #[test]
        fn no_artifact_panics_or_leaves(uri: String, path: String, unpack: Option<bool>) {
            for uri in [uri.clone(), format!("https://h/{uri}"), format!("file:///{uri}"), format!("/{uri}")] {
                let artifact = Artifact { unpack, path: path.clone(), ..artifact(&uri) };
                if let Ok(Planned { target: Target::File { at, .. }, .. }) = check(&artifact) {
                    prop_assert!(at.as_path().components().all(|c| matches!(c, std::path::Component::Normal(_))));
                }
            }
        }
    }
}
