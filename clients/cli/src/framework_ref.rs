//! Which framework `ID|NAME` means.

use bulkhead_proto::v1::FrameworkEntry;

/// A reference that names no single framework.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameworkRefError {
    #[error("no framework is called {0:?}; `bulkhead frameworks` lists those there are")]
    Unknown(String),
    #[error("{wanted:?} fits {} frameworks: {}; write more of the id", .candidates.len(), .candidates.join(", "))]
    Ambiguous { wanted: String, candidates: Vec<String> },
}

/// The framework that `wanted` means: an exact id, else a name, else the start of an id. Among equals a connected one is
/// meant before the others.
///
/// # Errors
/// [`FrameworkRefError`] lists the candidates.
pub(crate) fn resolve<'a>(
    frameworks: &'a [FrameworkEntry],
    wanted: &str,
) -> Result<&'a FrameworkEntry, FrameworkRefError> {
    let fits = |fit: fn(&FrameworkEntry, &str) -> bool| {
        frameworks.iter().filter(|f| !wanted.is_empty() && fit(f, wanted)).collect::<Vec<_>>()
    };
    let by = [
        fits(|f, id| f.framework_id == id),
        fits(|f, name| f.name == name),
        fits(|f, id| f.framework_id.starts_with(id)),
    ];
    let fits = by.into_iter().find(|fits| !fits.is_empty()).unwrap_or_default();
    let connected: Vec<_> = fits.iter().filter(|f| f.connected).collect();
    match (connected.as_slice(), fits.as_slice()) {
        ([one], _) => Ok(*one),
        ([], [one]) => Ok(*one),
        ([], []) => Err(FrameworkRefError::Unknown(wanted.to_owned())),
        _ => Err(FrameworkRefError::Ambiguous {
            wanted: wanted.to_owned(),
            candidates: fits.iter().map(|f| f.framework_id.clone()).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_find_it() {
        let framework = |id: &str, name: &str, connected| FrameworkEntry {
            framework_id: id.into(),
            name: name.into(),
            connected,
            ..FrameworkEntry::default()
        };
        let all = [
            framework("aa1", "web", true),
            framework("aa2", "batch", false),
            framework("bb3", "batch", true),
            framework("cc4", "twice", true),
            framework("cc5", "twice", true),
        ];
        for (wanted, found) in
            [("aa1", "aa1"), ("web", "aa1"), ("batch", "bb3"), ("bb", "bb3"), ("aa2", "aa2")]
        {
            assert_eq!(resolve(&all, wanted).map(|f| f.framework_id.as_str()), Ok(found), "{wanted}");
        }
        let twice = resolve(&all, "twice").unwrap_err().to_string();
        assert!(twice.contains("fits 2 frameworks: cc4, cc5"), "{twice}");
        assert_eq!(resolve(&all, ""), Err(FrameworkRefError::Unknown(String::new())));
    }
}
