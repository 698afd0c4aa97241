//! How messages look as JSON, for `--json` listings.

use serde::{Serialize, Serializer};

/// Writes a protobuf enum field as its name in snake case; a number this build does not know stays a number.
pub(crate) fn enum_name<E, S>(value: &i32, serializer: S) -> Result<S::Ok, S::Error>
where
    E: TryFrom<i32> + Serialize,
    S: Serializer,
{
    match E::try_from(*value) {
        Ok(known) => known.serialize(serializer),
        Err(_) => value.serialize(serializer),
    }
}
