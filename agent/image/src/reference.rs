//! What a task names its image by. Pure.

use std::{fmt, path::PathBuf, str::FromStr};

use bulkhead_stage::Digest;

/// Longest reference that is read: a path of the kernel's longest and a name behind it.
const MAX_LEN: usize = 4096 + 512;

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// `oci:DIRECTORY[:TAG]`: an OCI image layout. Without a tag the layout must hold one image.
    Layout {
        /// Absolute, without `..`; what is behind the first colon is the tag.
        dir: PathBuf,
        /// The annotation `org.opencontainers.image.ref.name` of the image that is meant.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:REF]`: what `docker save` writes. Without a reference it must hold one image.
    Archive {
        /// Absolute, without `..`; what is behind the first colon is the reference.
        file: PathBuf,
        /// `NAME[:TAG]` as it was given to `docker save`.
        image: Option<String>,
    },
    /// `docker://HOST[:PORT]/NAME[:TAG|@DIGEST]`: a registry.
    Registry(Remote),
}

/// An image of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Remote {
    /// `HOST[:PORT]`, lower case.
    pub host: String,
    /// The repository.
    pub name: String,
    /// Which of its images.
    pub version: Version,
}

/// Which image of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// The one that has this tag now; `latest` where none is given.
    Tag(String),
    /// This one and no other.
    Digest(Digest),
}

/// What is wrong with a reference.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("image reference {reference:?}: {why}")]
pub struct ReferenceError {
    /// What was given, shortened.
    pub reference: String,
    /// What is wrong and what would be right.
    pub why: &'static str,
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|why| ReferenceError { reference: text.chars().take(200).collect(), why })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.len() > MAX_LEN || text.chars().any(char::is_control) {
        return Err("it is too long or has control characters in it");
    }
    if let Some(rest) = text.strip_prefix("docker://") {
        return remote(rest).map(Reference::Registry);
    }
    if let Some(rest) = text.strip_prefix("oci:") {
        let (dir, tag) = local(rest)?;
        return Ok(Reference::Layout { dir, tag });
    }
    if let Some(rest) = text.strip_prefix("docker-archive:") {
        let (file, image) = local(rest)?;
        return Ok(Reference::Archive { file, image });
    }
    Err("write oci:DIRECTORY[:TAG], docker-archive:FILE[:REF] or docker://HOST[:PORT]/NAME[:TAG|@DIGEST]")
}

/// A path and what follows its first colon.
fn local(text: &str) -> Result<(PathBuf, Option<String>), &'static str> {
    let (path, name) = text.split_once(':').map_or((text, None), |(path, name)| (path, Some(name)));
    if !path.starts_with('/') || path.len() > 4096 {
        return Err("give the absolute path of a directory or file");
    }
    if path.split('/').any(|part| part == "..") {
        return Err("the path has '..' in it: write where it leads");
    }
    // The characters that the layout's specification allows in a name, with what images are called in practice.
    let usable = |c: char| c.is_ascii_alphanumeric() || "-._:@/+".contains(c);
    match name {
        Some(name) if name.is_empty() || !name.chars().all(usable) => {
            Err("behind the path's colon comes a name: letters, digits and -._:@/+")
        }
        name => Ok((path.into(), name.map(Into::into))),
    }
}

fn remote(text: &str) -> Result<Remote, &'static str> {
    let (host, rest) = text.split_once('/').ok_or("name the registry first: docker://HOST[:PORT]/NAME")?;
    check_host(host)?;
    let (name, version) = match rest.split_once('@') {
        Some((name, digest)) => {
            let digest = digest.parse().map_err(|_| "behind @ comes sha256: and 64 hexadecimal digits")?;
            (name, Version::Digest(digest))
        }
        None => match rest.split_once(':') {
            Some((name, tag)) => (name, Version::Tag(check_tag(tag)?)),
            None => (rest, Version::Tag("latest".into())),
        },
    };
    check_name(name)?;
    // The one registry whose own images have a short and a long name.
    let short = host.eq_ignore_ascii_case("docker.io") && !name.contains('/');
    let name = if short { format!("library/{name}") } else { name.to_owned() };
    Ok(Remote { host: host.to_ascii_lowercase(), name, version })
}

fn check_host(host: &str) -> Result<(), &'static str> {
    let (name, port) = host.rsplit_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let label = |label: &str| {
        let usable = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(usable) && !label.starts_with('-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err("the registry is no host name or IPv4 address");
    }
    if !name.contains('.') && port.is_none() && !name.eq_ignore_ascii_case("localhost") {
        return Err("the registry's host is missing: docker://docker.io/library/NAME, for example");
    }
    let number =
        |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0);
    port.is_none_or(number).then_some(()).ok_or("the registry's port is no number from 1 to 65535")
}

fn check_name(name: &str) -> Result<(), &'static str> {
    let usable = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let component = |part: &str| {
        let (first, last) = (part.bytes().next(), part.bytes().last());
        first.is_some_and(usable)
            && last.is_some_and(usable)
            && part.bytes().all(|b| usable(b) || b"._-".contains(&b))
            && !part.contains("..")
    };
    let fine = name.len() <= 255 && name.split('/').all(component);
    fine.then_some(())
        .ok_or("the image's name has small letters and digits, with . _ - between them and / between parts")
}

fn check_tag(tag: &str) -> Result<String, &'static str> {
    let usable = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let fine = (1..=128).contains(&tag.len()) && tag.bytes().all(usable) && !tag.starts_with(['.', '-']);
    fine.then(|| tag.to_owned())
        .ok_or("a tag is 1 to 128 letters, digits, _ . - and starts with no dot or dash")
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, path, name) = match self {
            Self::Layout { dir, tag } => ("oci", dir, tag),
            Self::Archive { file, image } => ("docker-archive", file, image),
            Self::Registry(Remote { host, name, version: Version::Tag(tag) }) => {
                return write!(f, "docker://{host}/{name}:{tag}");
            }
            Self::Registry(Remote { host, name, version: Version::Digest(digest) }) => {
                return write!(f, "docker://{host}/{name}@{digest}");
            }
        };
        write!(f, "{scheme}:{}", path.display())?;
        name.as_ref().map_or(Ok(()), |name| write!(f, ":{name}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_three_kinds_are_read() {
        let read = |text: &str| text.parse::<Reference>().unwrap();
        let layout = |tag: Option<&str>| Reference::Layout { dir: "/a/b".into(), tag: tag.map(Into::into) };
        assert_eq!(read("oci:/a/b"), layout(None));
        assert_eq!(read("oci:/a/b:v1"), layout(Some("v1")));
        assert_eq!(read("oci:/a/b:docker.io/x:v1"), layout(Some("docker.io/x:v1")));
        let archive = Reference::Archive { file: "/x.tar".into(), image: Some("me/app:2".into()) };
        assert_eq!(read("docker-archive:/x.tar:me/app:2"), archive);
        let remote = |host: &str, name: &str, version| {
            Reference::Registry(Remote { host: host.into(), name: name.into(), version })
        };
        let tag = |tag: &str| Version::Tag(tag.into());
        assert_eq!(read("docker://localhost:5000/a/b"), remote("localhost:5000", "a/b", tag("latest")));
        assert_eq!(read("docker://Reg.Example/a:1.0"), remote("reg.example", "a", tag("1.0")));
        assert_eq!(read("docker://docker.io/alpine"), remote("docker.io", "library/alpine", tag("latest")));
        let digest = format!("sha256:{}", "0a".repeat(32));
        let version = Version::Digest(digest.parse().unwrap());
        assert_eq!(read(&format!("docker://r.x/a@{digest}")), remote("r.x", "a", version));
    }

    #[test]
    fn what_is_no_reference_is_told_why() {
        for (text, why) in [
            ("", "oci:DIRECTORY"),
            ("alpine", "oci:DIRECTORY"),
            ("oci:", "absolute"),
            ("oci:a/b", "absolute"),
            ("oci:/a/../b", ".."),
            ("oci:/a:", "a name"),
            ("oci:/a:b c", "a name"),
            ("docker-archive:/a\nb", "control"),
            ("docker://alpine", "registry first"),
            ("docker://library/alpine", "host is missing"),
            ("docker://r.x/", "small letters"),
            ("docker://r.x/A", "small letters"),
            ("docker://r.x/a//b", "small letters"),
            ("docker://r.x/../b", "small letters"),
            ("docker://r.x/a:", "tag"),
            ("docker://r.x/a:-b", "tag"),
            ("docker://r.x/a@sha256:12", "64"),
            ("docker://r.x:0/a", "port"),
            ("docker://r.x:99999/a", "port"),
            ("docker://user@r.x/a", "host name"),
            ("docker://-r.x/a", "host name"),
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(error.why.contains(why), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_what_is_read_is_written_the_same(text in "(oci:/|docker-archive:/|docker://|)[ -~é\\x00]{0,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let written = reference.to_string();
                prop_assert_eq!(written.parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
