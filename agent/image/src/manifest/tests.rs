use serde_json::{Value, json};

use super::*;

const AMD: Platform = Platform { architecture: "amd64" };

fn hex(digit: char) -> String {
    format!("sha256:{}", digit.to_string().repeat(64))
}

fn bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

fn refused<T: std::fmt::Debug>(result: Result<T, ManifestError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn an_index_leads_to_the_image_for_this_machine() {
    let entry = |digit, os: &str, arch: &str| json!({"digest": hex(digit), "size": 7, "platform": {"os": os, "architecture": arch}});
    let index = bytes(&json!({"manifests": [
        entry('a', "linux", "arm64"), entry('b', "windows", "amd64"), entry('c', "linux", "amd64"),
        entry('d', "linux", "amd64"), entry('e', "unknown", "unknown"),
    ]}));
    let found = document(&index, None, &AMD).unwrap();
    assert_eq!(found, Document::Elsewhere(Blob { digest: hex('c').parse().unwrap(), size: 7 }));
    let why = refused(document(&index, None, &Platform { architecture: "s390x" }));
    assert!(why.contains("linux/s390x") && why.contains("windows/amd64"), "{why}");
}

#[test]
fn tags_choose_and_what_is_ambiguous_is_listed() {
    let entry = |digit, tag: &str| json!({"digest": hex(digit), "size": 7, "annotations": {"org.opencontainers.image.ref.name": tag}});
    let index = bytes(&json!({"manifests": [entry('a', "v1"), entry('b', "v2")]}));
    let found = document(&index, Some("v2"), &AMD).unwrap();
    assert!(matches!(found, Document::Elsewhere(blob) if blob.digest.to_string() == hex('b')));
    assert!(refused(document(&index, Some("v3"), &AMD)).contains("v1, v2"));
    assert!(refused(document(&index, None, &AMD)).contains("v1, v2"));
    let empty = bytes(&json!({"manifests": []}));
    assert!(refused(document(&empty, None, &AMD)).contains("no image"));
}

#[test]
fn what_is_no_image_is_told() {
    let read = |value: Value| refused(document(&bytes(&value), None, &AMD));
    assert!(read(json!({})).contains("neither"));
    assert!(read(json!([])).contains("malformed"));
    assert!(refused(document(b"{", None, &AMD)).contains("line 1"));
    let layer = json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": hex('a'), "size": 1});
    let manifest = |layers: Value| json!({"config": {"digest": hex('f'), "size": 2}, "layers": layers});
    assert!(document(&bytes(&manifest(json!([layer]))), None, &AMD).is_ok());
    assert!(read(manifest(json!(vec![layer.clone(); 200]))).contains("200 layers"));
    let chart = json!({"mediaType": "application/vnd.cncf.helm.chart", "digest": hex('a'), "size": 1});
    assert!(read(manifest(json!([chart]))).contains("helm"));
    let bad = json!({"digest": "sha256:../../etc", "size": 1});
    assert!(read(manifest(json!([bad]))).contains("digest"));
    let negative = json!({"digest": hex('a'), "size": -1});
    assert!(read(manifest(json!([negative]))).contains("malformed"));
}

#[test]
fn a_configuration_says_what_runs() {
    let text = bytes(&json!({
        "os": "linux", "architecture": "amd64",
        "config": {"Entrypoint": ["/run"], "Cmd": null, "Env": ["A=b=c", "E="], "User": "web:www", "WorkingDir": "/srv"},
        "rootfs": {"type": "layers", "diff_ids": [hex('a')]},
    }));
    let (read, layers) = config(&text, &AMD).unwrap();
    assert_eq!(read.entrypoint, ["/run"]);
    assert_eq!(read.env, [("A".into(), "b=c".into()), ("E".into(), String::new())]);
    assert_eq!((read.user.as_str(), read.working_dir.as_str()), ("web:www", "/srv"));
    assert_eq!(layers.len(), 1);
    assert!(refused(config(&text, &Platform { architecture: "arm64" })).contains("linux/arm64"));

    let variant = |config: Value, ids: Value| bytes(&json!({"config": config, "rootfs": {"diff_ids": ids}}));
    assert!(config(&variant(Value::Null, json!([hex('a')])), &AMD).is_ok());
    assert!(refused(config(&variant(Value::Null, json!([])), &AMD)).contains("0 layers"));
    assert!(refused(config(&variant(json!({"Env": ["x"]}), json!([hex('a')])), &AMD)).contains("\"x\""));
    assert!(refused(config(&variant(json!({"Cmd": ["a\0"]}), json!([hex('a')])), &AMD)).contains("NUL"));
}

#[test]
fn saved_images_are_found_by_their_names() {
    let one = |tag: &str| json!({"Config": "c.json", "RepoTags": [tag], "Layers": ["l/layer.tar"]});
    let both = bytes(&json!([one("app:latest"), one("app:2")]));
    assert!(saved(&both, Some("app")).is_ok() && saved(&both, Some("app:2")).is_ok());
    assert!(refused(saved(&both, Some("other"))).contains("app:2"));
    assert!(refused(saved(&both, None)).contains("several"));
    assert!(refused(saved(b"[]", None)).contains("no image"));
    assert!(saved(&bytes(&json!([{"Config": "c", "RepoTags": null, "Layers": []}])), None).is_ok());
}
