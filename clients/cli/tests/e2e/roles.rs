//! `bulkhead roles`.

use std::collections::BTreeMap;

use bulkhead_proto::v1::{Amounts, RoleEntry, RoleSettings, SetRoleRequest};

use crate::{fake_master::FakeMaster, process::output};

fn amounts(kind: &str, amount: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([(kind.to_owned(), amount)])
}

#[tokio::test]
async fn roles_are_listed_with_what_they_were_given_and_hold() {
    let master = FakeMaster::start().await;
    let none = output(&master.address, &["roles"]).await;
    assert!(none.code == 0 && none.stderr.contains("no roles"), "{}", none.stderr);
    let settings = RoleSettings {
        weight: 2.5,
        limit: amounts("cpu_milli", 16_000),
        guarantee: amounts("mem_bytes", 8 << 30),
        ..RoleSettings::default()
    };
    master.lists().roles.push(RoleEntry {
        role: "team/web".into(),
        settings: Some(settings),
        is_set: true,
        held: amounts("cpu_milli", 1_500),
        dominant_share: 0.125,
        framework_count: 3,
        ..RoleEntry::default()
    });
    let listed = output(&master.address, &["roles"]).await;
    let row = listed.text().lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(row, "team/web 2.5 0 CPU 16 memory 8 GiB CPU 1.5 12% 3");
    let json = output(&master.address, &["--json", "roles"]).await.json();
    assert_eq!(json[0]["settings"]["limit"]["cpu_milli"], 16_000);
}

#[tokio::test]
async fn only_what_is_named_is_changed() {
    let master = FakeMaster::start().await;
    let args = ["roles", "set", "team", "--weight", "2", "--limit", "cpu=4,mem=none"];
    let bad = output(&master.address, &args).await;
    assert!(bad.code == 2 && bad.stderr.contains("mem: write an amount"), "{}", bad.stderr);
    assert_eq!(output(&master.address, &["roles", "set", "team"]).await.code, 2);
    assert!(master.lists().role_changes.is_empty());

    let args = ["roles", "set", "team", "--weight", "2", "--limit", "cpu=4"];
    let set = output(&master.address, &args).await;
    assert_eq!(set.code, 0, "{}", set.stderr);
    assert!(set.text().contains("CPU 4"), "{}", set.text());
    output(&master.address, &["roles", "set", "team", "--clear"]).await;
    let changes = std::mem::take(&mut master.lists().role_changes);
    let limit = Some(Amounts { kinds: amounts("cpu_milli", 4_000) });
    let named = SetRoleRequest { role: "team".into(), weight: Some(2.0), limit, ..SetRoleRequest::default() };
    let cleared = SetRoleRequest { role: "team".into(), clear: true, ..SetRoleRequest::default() };
    assert_eq!(changes, [named, cleared]);
}
