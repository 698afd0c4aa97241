//! How messages look as JSON, for `--json` listings.

use serde::{Serialize, Serializer, ser::SerializeSeq as _};

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

/// The same for each of several.
pub(crate) fn enum_names<E, S>(values: &[i32], serializer: S) -> Result<S::Ok, S::Error>
where
    E: TryFrom<i32> + Serialize,
    S: Serializer,
{
    let mut list = serializer.serialize_seq(Some(values.len()))?;
    for value in values {
        match E::try_from(*value) {
            Ok(known) => list.serialize_element(&known)?,
            Err(_) => list.serialize_element(value)?,
        }
    }
    list.end()
}

/// Does an enum field say nothing?
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
pub(crate) fn is_unspecified(value: &i32) -> bool {
    *value == 0
}
