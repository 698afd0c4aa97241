//! Generates the Rust side of `bulkhead.v1` with a compiler written in Rust: no protoc is needed.

use std::error::Error;

const INCLUDE: &str = "proto";
const FILES: [&str; 7] = ["types", "provenance", "link", "scheduler", "allocation", "operator", "agent"];

/// Fields that hold an enum, and its type: JSON shows the name instead of the number.
const ENUM_FIELDS: [(&str, &str); 19] = [
    ("Grant.class", "ResourceClass"),
    ("Offer.class", "ResourceClass"),
    ("TaskStatus.state", "TaskState"),
    ("TaskStatus.reason", "TaskReason"),
    ("Kill.reason", "TaskReason"),
    ("LogChunk.stream", "LogStream"),
    ("Event.kind", "EventKind"),
    ("Event.protocol", "Protocol"),
    ("NetOptions.port_choice", "PortChoice"),
    ("NetOptions.net_default", "NetAction"),
    ("NetRule.action", "NetAction"),
    ("NetRule.direction", "NetDirection"),
    ("NetRule.peer", "NetPeer"),
    ("NetRule.protocol", "Protocol"),
    ("KindOrigin.reserve_for", "HeldBackFor"),
    ("LendingOrigin.nothing_lent", "NothingLent"),
    ("SharePlace.kind", "PlaceKind"),
    ("AgentsNotOffered.why", "WhyNotOffered"),
    ("AgentForFramework.why", "WhyNotOffered"),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={INCLUDE}");
    let files: Vec<String> = FILES.iter().map(|f| format!("bulkhead/v1/{f}.proto")).collect();
    let descriptors = protox::compile(files, [INCLUDE])?;
    let mut config = tonic_prost_build::configure()
        .type_attribute(".", "#[derive(serde::Serialize)] #[serde(rename_all = \"snake_case\")]")
        .btree_map(".");
    for (field, ty) in ENUM_FIELDS {
        config = config.field_attribute(
            format!("bulkhead.v1.{field}"),
            format!("#[serde(serialize_with = \"crate::json::enum_name::<{ty}, _>\")]"),
        );
    }
    // Most ports are of both protocols, and say nothing about it.
    config = config.field_attribute(
        "bulkhead.v1.PortRange.protocol",
        "#[serde(serialize_with = \"crate::json::enum_name::<Protocol, _>\", skip_serializing_if = \
         \"crate::json::is_unspecified\")]",
    );
    config = config.field_attribute(
        "bulkhead.v1.NetOptions.sockets",
        "#[serde(serialize_with = \"crate::json::enum_names::<SocketKind, _>\")]",
    );
    config = config.field_attribute(
        "bulkhead.v1.ExplainFrameworkResponse.classes",
        "#[serde(serialize_with = \"crate::json::enum_names::<ResourceClass, _>\")]",
    );
    config.compile_fds(descriptors)?;
    Ok(())
}
