//! What may name an agent, a framework or a task: one rule for all sides.

/// Longest id, in bytes.
///
/// Ids become file names, which Linux limits to 255 bytes. The longest of them, `task@<framework>@<task>`, has
/// two ids and six bytes more; 100 for each leaves room for a longer prefix or a suffix.
pub const MAX_ID_BYTES: usize = 100;

/// Why a text cannot be an id, written as the second half of a sentence that begins with whose id it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadId {
    /// Nothing at all.
    #[error("is empty; use 1 to {MAX_ID_BYTES} of A-Z a-z 0-9 . _ -")]
    Empty,
    /// Too many bytes; this many.
    #[error("is {0} bytes long; at most {MAX_ID_BYTES} are allowed")]
    TooLong(usize),
    /// A character that is not safe in a file name everywhere.
    #[error("contains {0:?}; use only A-Z a-z 0-9 . _ -")]
    Character(char),
    /// A hidden file, `.` or `..`.
    #[error(
        "starts with '.', as hidden files and the names of directories do; begin it with another character"
    )]
    LeadingDot,
}

/// Checks that a text can be an id. The master asks for every id that it is sent, the agent for those that it
/// makes files and cgroups for.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn check_id(id: &str) -> Result<(), BadId> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if id.is_empty() {
        Err(BadId::Empty)
    } else if id.len() > MAX_ID_BYTES {
        Err(BadId::TooLong(id.len()))
    } else if let Some(odd) = id.chars().find(|&c| !allowed(c)) {
        Err(BadId::Character(odd))
    } else if id.starts_with('.') {
        Err(BadId::LeadingDot)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_safe_file_names() {
        for good in ["a", "A-1_b.c", "-", "web-1...", &"x".repeat(MAX_ID_BYTES)] {
            assert_eq!(check_id(good), Ok(()), "{good}");
        }
        let bad = [
            ("", BadId::Empty),
            (".", BadId::LeadingDot),
            ("..", BadId::LeadingDot),
            (".x", BadId::LeadingDot),
            ("a/b", BadId::Character('/')),
            ("a b", BadId::Character(' ')),
            ("a@b", BadId::Character('@')),
            ("a\0", BadId::Character('\0')),
            ("\u{e9}", BadId::Character('\u{e9}')),
        ];
        for (id, why) in bad {
            assert_eq!(check_id(id), Err(why), "{id:?}");
        }
        assert_eq!(check_id(&"x".repeat(MAX_ID_BYTES + 1)), Err(BadId::TooLong(MAX_ID_BYTES + 1)));
    }

    #[test]
    fn two_of_the_longest_ids_fit_into_one_file_name() {
        let longest = "x".repeat(MAX_ID_BYTES);
        assert!(format!("task@{longest}@{longest}").len() <= 255);
    }
}
