//! How frameworks name data sets, and how many: every side keeps to the same bounds.

/// Data sets that a framework may name at a time.
pub const MAX_DATA_SETS: usize = 64;
/// Longest name, in bytes: the kernel takes no longer paths.
pub const MAX_NAME_BYTES: usize = 4096;
/// All names of a framework together, in bytes. Each of its offers repeats them.
pub const MAX_NAMES_BYTES: usize = 32 << 10;
/// Longest [`error`](crate::v1::DataAccess::error), in bytes.
pub const MAX_ERROR_BYTES: usize = 256;

/// May a framework name these?
///
/// # Errors
/// A sentence for the framework's author.
pub fn check_names(names: &[String]) -> Result<(), String> {
    if names.len() > MAX_DATA_SETS {
        return Err(format!("{} data sets are named: name at most {MAX_DATA_SETS}", names.len()));
    }
    names.iter().try_for_each(|name| check_name(name))?;
    let bytes: usize = names.iter().map(String::len).sum();
    if bytes > MAX_NAMES_BYTES {
        return Err(format!(
            "the names of the data sets have {bytes} bytes together: at most {MAX_NAMES_BYTES}"
        ));
    }
    Ok(())
}

/// Can this be the name of a data set?
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("the name of a data set is empty: write a path".to_owned());
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(format!(
            "the name of a data set has {} bytes: at most {MAX_NAME_BYTES}, and that is the longest path",
            name.len()
        ));
    }
    if name.contains('\0') {
        return Err(format!("the data set {name:?} has a zero byte in its name, which no path has"));
    }
    Ok(())
}

/// A text cut to its first `max` bytes, at the border of a character.
pub fn cut(mut text: String, max: usize) -> String {
    text.truncate(text.floor_char_boundary(max));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_one_by_one_and_together() {
        let names = |n: usize, bytes: usize| vec!["x".repeat(bytes); n];
        check_names(&names(MAX_DATA_SETS, 512)).unwrap();
        check_names(&names(8, MAX_NAME_BYTES)).unwrap();
        check_names(&["/data/two\nlines".to_owned()]).unwrap();
        assert!(check_names(&names(MAX_DATA_SETS + 1, 1)).unwrap_err().contains("at most 64"));
        assert!(check_names(&names(9, MAX_NAME_BYTES)).unwrap_err().contains("together"));
        assert!(check_names(&names(1, MAX_NAME_BYTES + 1)).unwrap_err().contains("4097"));
        assert!(check_names(&["a\0b".to_owned()]).unwrap_err().contains("zero byte"));
        assert!(check_names(&[String::new()]).unwrap_err().contains("empty"));
    }

    #[test]
    fn a_cut_leaves_whole_characters() {
        assert_eq!(cut("aé".to_owned(), 2), "a");
        assert_eq!(cut("aé".to_owned(), 3), "aé");
        assert_eq!(cut("a".to_owned(), 0), "");
    }
}
