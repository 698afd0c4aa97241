//! Who a task runs as, seen from the host: as it says itself, or its image, or the agent's settings.

use super::{image::RootImage, plan::Plan};
use crate::{
    kernel::spawn::Identity,
    user::{self, UserError, Users},
};

/// Root only where the agent allows it, or where the task is root for itself alone.
///
/// # Errors
/// [`UserError`].
pub(super) fn of(
    plan: &Plan,
    image: Option<&RootImage>,
    users: &Users,
    allow_root: bool,
) -> Result<Identity, UserError> {
    let said_by_image = image.map(|image| image.user.as_str()).filter(|user| !user.is_empty());
    let mut identity = match (image, plan.user.as_deref().or(said_by_image)) {
        (Some(image), Some(user)) => user::in_image(image, user)?,
        (_, user) => users.host(user.unwrap_or(&plan.default_user))?,
    };
    if identity.uid == 0 {
        if plan.fences.user_namespace {
            // Root is what it is inside; outside it is nobody in particular.
            identity = users.host(&plan.default_user)?;
        }
        if identity.uid == 0 && !allow_root {
            let name = plan.user.as_deref().or(said_by_image).unwrap_or(&plan.default_user);
            return Err(UserError::Root(name.to_owned()));
        }
    }
    if !plan.fences.groups.is_empty() {
        identity.groups = groups(plan, image, &identity)?;
    }
    Ok(identity)
}

/// The groups that a task names, which must be its user's own unless the agent trusts it.
fn groups(plan: &Plan, image: Option<&RootImage>, identity: &Identity) -> Result<Vec<u32>, UserError> {
    let id = |name: &String| {
        let gid = match image {
            Some(image) => user::image_group(image, name)?,
            None => user::host_group(name)?,
        };
        let own = identity.gid == gid || identity.groups.contains(&gid);
        if own || plan.fences.any_group {
            return Ok(gid);
        }
        let user = plan.user.clone().unwrap_or_else(|| plan.default_user.clone());
        Err(UserError::ForeignGroup { user, group: name.clone() })
    };
    plan.fences.groups.iter().map(id).collect()
}
