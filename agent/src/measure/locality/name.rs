//! What the name of a data set says. Pure.

use std::path::{Component, Path, PathBuf};

use bulkhead_proto::data_sets::check_name;
use glob::Pattern;

/// Marks of a pattern.
const MAGIC: [char; 3] = ['*', '?', '['];
const WEBHDFS: &str = "webhdfs://";

/// A data set, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DataSet {
    /// On a file system of the node.
    Local(LocalSet),
    /// `webhdfs://HOST:PORT/PATH`.
    Hdfs(HdfsPath),
}

/// A file, a directory with everything in it, or what matches a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LocalSet {
    /// The directories before the first pattern, or all of the path.
    pub(super) base: PathBuf,
    /// One for each further component.
    pub(super) patterns: Vec<Pattern>,
}

/// A path of HDFS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HdfsPath {
    /// HOST:PORT of the server.
    pub(super) name_node: String,
    /// Absolute.
    pub(super) path: String,
}

impl DataSet {
    /// Reads a name.
    ///
    /// # Errors
    /// A sentence for the framework.
    pub(super) fn parse(name: &str) -> Result<Self, String> {
        check_name(name)?;
        if let Some(rest) = name.strip_prefix(WEBHDFS) {
            return hdfs(rest).map(Self::Hdfs);
        }
        if let Some((scheme, _)) = name.split_once("://")
            && !name.starts_with('/')
        {
            return Err(format!(
                "{scheme:?} is not known: write an absolute path, or webhdfs://HOST:PORT/PATH"
            ));
        }
        local(name).map(Self::Local)
    }
}

fn hdfs(rest: &str) -> Result<HdfsPath, String> {
    let form = "write webhdfs://HOST:PORT/PATH";
    let (name_node, path) = rest.split_once('/').ok_or(form)?;
    if name_node.is_empty() || name_node.contains('@') {
        return Err(form.to_owned());
    }
    if path.split('/').any(|part| part == "..") {
        return Err("a path of HDFS has no ..".to_owned());
    }
    if path.contains(MAGIC) {
        return Err("patterns are for local paths: write the directory of HDFS".to_owned());
    }
    Ok(HdfsPath { name_node: name_node.to_owned(), path: format!("/{path}") })
}

fn local(name: &str) -> Result<LocalSet, String> {
    let path = Path::new(name);
    if !path.is_absolute() {
        return Err("write an absolute path, or webhdfs://HOST:PORT/PATH".to_owned());
    }
    let mut set = LocalSet { base: PathBuf::from("/"), patterns: Vec::new() };
    for component in path.components() {
        let part = match component {
            Component::RootDir | Component::CurDir => continue,
            Component::Normal(part) => part.to_str().unwrap_or_default(),
            Component::ParentDir | Component::Prefix(_) => {
                return Err("write the path without ..: where it leads depends on links".to_owned());
            }
        };
        if part.contains("**") {
            return Err("** is not needed: a directory is looked at with everything below it".to_owned());
        }
        if set.patterns.is_empty() && !part.contains(MAGIC) {
            set.base.push(part);
        } else {
            set.patterns.push(Pattern::new(part).map_err(|e| format!("the pattern {part:?}: {e}"))?);
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local_set(name: &str) -> LocalSet {
        match DataSet::parse(name).unwrap() {
            DataSet::Local(set) => set,
            DataSet::Hdfs(path) => panic!("{path:?}"),
        }
    }

    #[test]
    fn a_path_ends_where_its_pattern_begins() {
        assert_eq!(local_set("/data//a/./b/"), LocalSet { base: "/data/a/b".into(), patterns: vec![] });
        let set = local_set("/data/day=*/part-[0-9].orc");
        assert_eq!(set.base, Path::new("/data"));
        assert_eq!(set.patterns.iter().map(Pattern::as_str).collect::<Vec<_>>(), ["day=*", "part-[0-9].orc"]);
        assert_eq!(local_set("/data/two\nlines").base, Path::new("/data/two\nlines"));
        let hdfs = DataSet::parse("webhdfs://nn:9870/logs/2026").unwrap();
        assert_eq!(hdfs, DataSet::Hdfs(HdfsPath { name_node: "nn:9870".into(), path: "/logs/2026".into() }));
    }

    #[test]
    fn what_is_no_name_is_refused_with_a_sentence() {
        for (name, why) in [
            ("", "empty"),
            ("data", "absolute"),
            ("/data/../etc", ".."),
            ("/data/**/x", "**"),
            ("/data/[", "pattern"),
            ("/data/a\0b", "zero byte"),
            ("s3://bucket/x", "s3"),
            ("webhdfs://nn:1", "webhdfs://HOST:PORT/PATH"),
            ("webhdfs://me@nn:1/x", "webhdfs://HOST:PORT/PATH"),
            ("webhdfs://nn:1/a/../b", ".."),
            ("webhdfs://nn:1/a/*", "patterns"),
        ] {
            let error = DataSet::parse(name).unwrap_err();
            assert!(error.contains(why), "{name:?}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_name_leads_up_or_panics(name in "\\PC{0,40}|(/|\\.|\\*|\\[|a|\n){0,12}") {
            if let Ok(DataSet::Local(set)) = DataSet::parse(&name) {
                proptest::prop_assert!(set.base.is_absolute());
                proptest::prop_assert!(set.base.components().all(|c| c != Component::ParentDir));
            }
        }
    }
}
