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
