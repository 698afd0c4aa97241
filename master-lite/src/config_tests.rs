use std::error::Error;

use super::*;

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("master.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn load(text: &str) -> Result<Config, ConfigError> {
    let (_dir, path) = file(text);
    Config::load(Options::default(), Some(&path))
}

#[test]
fn nothing_set_is_the_default() {
    assert_eq!(Config::load(Options::default(), None).unwrap(), Config::default());
    assert_eq!(load("").unwrap(), Config::default());
}

#[test]
fn a_flag_beats_the_file_and_the_file_beats_the_default() {
    let (_dir, path) = file("offer_timeout = \"7s\"\nhistory = 5\nlisten = \"127.0.0.1:1\"");
    let flags = Options { history: Some(9), ..Options::default() };
    let config = Config::load(flags, Some(&path)).unwrap();
    assert_eq!(config.offer_timeout, Duration::from_secs(7));
    assert_eq!(config.history, 9);
    assert_eq!(config.listen.port(), 1);
    assert_eq!(config.refuse, Config::default().refuse);
}

#[test]
fn a_malformed_file_is_named_with_line_and_key() {
    for (text, says) in [
        ("history = 5\nheartbeet = \"5s\"", "heartbeet"),
        ("history = 5\noffer_timeout = \"soon\"", "offer_timeout"),
        ("history = 5\nlisten = \"nowhere\"", "listen"),
        ("history = 5\nrefuse = ", "refuse"),
    ] {
        let error = load(text).unwrap_err();
        assert!(error.to_string().contains("master.toml"), "{error}");
        let detail = error.source().unwrap().to_string();
        assert!(detail.contains("line 2") && detail.contains(says), "{detail}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Options::default(), Some(Path::new("/nonexistent/master.toml"))).unwrap_err();
    assert!(matches!(&error, ConfigError::Read { path, .. } if path.ends_with("master.toml")), "{error}");
}

#[test]
fn values_that_make_no_sense_are_refused_by_name() {
    for (text, key) in [
        ("heartbeat_interval = \"0s\"", "heartbeat_interval"),
        ("agent_timeout = \"14s\"", "agent_timeout"),
        ("offer_timeout = \"0s\"", "offer_timeout"),
        ("session_queue = 0", "session_queue"),
    ] {
        assert!(load(text).unwrap_err().to_string().starts_with(key), "{text}");
    }
}

#[test]
fn weights_quotas_and_the_policy_are_in_the_file() {
    use crate::allocator::{Bundle, CPU, MEM, Weight};
    let config = load(
        "[allocator]\npolicy = \"priority\"\nuncounted = [\"ports\"]\n\
         [allocator.roles.\"team/web\"]\nweight = 2.5\npriority = 3\nlimit = { cpu_milli = 0 }\n\
         [allocator.roles.other]\nguarantee = { mem_bytes = 7 }\n",
    );
    let allocator = config.unwrap().allocator;
    assert_eq!(allocator.policy, "priority");
    let web = &allocator.roles["team/web"];
    assert_eq!((web.weight, web.priority), (Weight::try_from(2.5).unwrap(), 3));
    assert_eq!((web.limit.0[CPU], web.limit.0[MEM], web.guarantee), (0, u64::MAX, Bundle::default()));
    assert_eq!(allocator.roles["other"].guarantee.0[MEM], 7);
    assert!(allocator.build(Vec::new()).is_ok());
}

#[test]
fn what_cannot_be_kept_of_roles_is_refused() {
    for (text, says) in [
        ("roles.a.weight = 0.0", "weight 0"),
        ("roles.a.weight = nan", "weight NaN"),
        ("roles.a.weight = inf", "weight inf"),
        ("roles.a.limit = { cpus = 1 }", "cpu_milli, mem_bytes"),
        ("uncounted = [\"gpus\"]", "gpus"),
        ("roles.\"a//b\".weight = 1.0", "empty"),
        ("roles.a = { limit = { mem_bytes = 1 }, guarantee = { mem_bytes = 2 } }", "raise the limit"),
    ] {
        let error = load(&format!("[allocator]\n{text}")).unwrap_err().to_string();
        assert!(error.starts_with("allocator") && error.contains(says), "{text}: {error}");
    }
    let unknown = load("[allocator]\npolicy = \"lottery\"").unwrap().allocator.build(Vec::new());
    assert!(unknown.is_err_and(|e| e.to_string().contains("drf, priority")));
}
