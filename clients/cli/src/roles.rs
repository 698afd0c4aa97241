//! `bulkhead roles`: how roles stand, and what operators say of them.

use bulkhead_proto::v1::{ListRolesRequest, RoleEntry, SetRoleRequest};

use crate::{
    args::{RolesAction, RolesArgs, SetRoleArgs},
    connect::{Address, operator, refused_by_master},
    error::CliError,
    list::view,
    screen::Screen,
};

/// `bulkhead roles`.
pub(crate) async fn roles(address: &Address, screen: Screen, args: &RolesArgs) -> Result<(), CliError> {
    match &args.action {
        None => list(address, screen).await,
        Some(RolesAction::Set(args)) => set(address, screen, args).await,
    }
}

async fn list(address: &Address, screen: Screen) -> Result<(), CliError> {
    let answer = operator(address).await?.list_roles(ListRolesRequest {}).await;
    let roles = answer.map_err(refused_by_master("ListRoles"))?.into_inner().roles;
    if screen.json {
        return screen.document(&roles);
    }
    if roles.is_empty() {
        screen.note("no roles: no framework is there, and nothing was said of any role");
        return Ok(());
    }
    screen.out(&view(screen).roles(&roles))
}

async fn set(address: &Address, screen: Screen, args: &SetRoleArgs) -> Result<(), CliError> {
    let request = SetRoleRequest {
        role: args.role.clone(),
        clear: args.clear,
        weight: args.weight,
        priority: args.priority,
        limit: args.limit.clone(),
        guarantee: args.guarantee.clone(),
    };
    let answer = operator(address).await?.set_role(request).await;
    let answer = answer.map_err(refused_by_master("SetRole"))?.into_inner();
    if screen.json {
        return screen.document(&answer);
    }
    let role = RoleEntry { role: args.role.clone(), settings: answer.settings, ..RoleEntry::default() };
    screen.out(&view(screen).role_settings(&role))
}
