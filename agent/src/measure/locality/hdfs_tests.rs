//! Against a server of its own.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    extract::State,
    http::{StatusCode as Code, Uri},
    response::{IntoResponse as _, Response},
};

use super::*;
use crate::measure::locality::tally::Amount;

const FAR: &str = "192.0.2.1";
const ME: &str = "node7";

/// What the server answers: by path and operation.
type Answer = fn(&str, &str) -> Response;

#[derive(Clone)]
struct Server {
    answer: Answer,
    asked: Arc<Mutex<Vec<String>>>,
}

async fn serve(answer: Answer) -> (String, Server) {
    let server = Server { answer, asked: Arc::default() };
    let handler = |State(server): State<Server>, uri: Uri| async move {
        let query = uri.query().unwrap_or_default();
        let operation = query.split('&').find_map(|pair| pair.strip_prefix("op=")).unwrap_or_default();
        server.asked.lock().unwrap().push(uri.to_string());
        if uri.path().ends_with("/never") {
            std::future::pending::<()>().await;
        }
        (server.answer)(uri.path(), operation)
    };
    let app = Router::new().fallback(handler).with_state(server.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, server)
}

fn asks(node: &str, time_bound_ms: u64) -> WebHdfs {
    let config = LocalityConfig {
        name_nodes: vec![node.to_owned()],
        hdfs_user: "me".into(),
        hdfs_time_bound_ms: time_bound_ms,
        ..LocalityConfig::default()
    };
    WebHdfs::new(&config, ME).unwrap()
}

async fn look(node: &str, path: &str) -> Result<Tally, LookError> {
    asks(node, 10_000).look(&HdfsPath { name_node: node.into(), path: path.into() }, 1).await
}

fn json(text: String) -> Response {
    text.into_response()
}

fn bad_request() -> Response {
    let body = r#"{"RemoteException":{"exception":"IllegalArgumentException","message":"Invalid value"}}"#;
    (Code::BAD_REQUEST, body).into_response()
}

/// `/d` with a file of two blocks, one of them here, and a directory with a file that is cached here.
fn tree(path: &str, operation: &str) -> Response {
    let file =
        |name: &str, length: u64| format!(r#"{{"pathSuffix":"{name}","length":{length},"type":"FILE"}}"#);
    let block = |length: u64, host: &str, cached: &str| {
        format!(
            r#"{{"length":{length},"hosts":["{host}"],"names":["{host}:9866"],"cachedHosts":[{cached}]}}"#
        )
    };
    match (path, operation) {
        ("/webhdfs/v1/d", "LISTSTATUS") => json(format!(
            r#"{{"FileStatuses":{{"FileStatus":[{},{{"pathSuffix":"sub","length":0,"type":"DIRECTORY"}}]}}}}"#,
            file("a b%", 300)
        )),
        ("/webhdfs/v1/d/sub", "LISTSTATUS") => {
            json(format!(r#"{{"FileStatuses":{{"FileStatus":[{}]}}}}"#, file("c", 50)))
        }
        ("/webhdfs/v1/d/a%20b%25", "GETFILEBLOCKLOCATIONS") => json(format!(
            r#"{{"BlockLocations":{{"BlockLocation":[{},{}]}}}}"#,
            block(100, "NODE7", ""),
            block(9_999_999, FAR, "")
        )),
        ("/webhdfs/v1/d/sub/c", "GETFILEBLOCKLOCATIONS") => {
            json(format!(r#"{{"BlockLocations":{{"BlockLocation":[{}]}}}}"#, block(50, FAR, "\"node7\"")))
        }
        _ => (Code::NOT_FOUND, "").into_response(),
    }
}

#[tokio::test]
async fn blocks_are_counted_by_where_their_replicas_are() {
    let (node, server) = serve(tree).await;
    let tally = look(&node, "/d").await.unwrap();
    assert_eq!(tally.cached_bytes, 50);
    assert_eq!(tally.homes[&Home::Disk(String::new())], Amount { bytes: 100, files: 1 });
    assert_eq!(
        tally.homes[&Home::Elsewhere],
        Amount { bytes: 200, files: 1 },
        "never more than the file's length"
    );
    assert_eq!((tally.seen, tally.total, tally.sampled), (2, 2, false));
    assert!(server.asked.lock().unwrap().iter().all(|asked| asked.contains("user.name=me")));
}

#[tokio::test]
async fn an_elder_server_is_asked_in_its_own_way() {
    let (node, _) = serve(|_, operation| match operation {
        "LISTSTATUS" => json(
            r#"{"FileStatuses":{"FileStatus":[{"pathSuffix":"","length":10,"type":"FILE"}]}}"#.to_owned(),
        ),
        "GET_BLOCK_LOCATIONS" => json(
            r#"{"LocatedBlocks":{"fileLength":10,"locatedBlocks":[{"block":{"numBytes":10},
               "locations":[{"hostName":"node7","ipAddr":"192.0.2.7"}],"cachedLocations":[]}]}}"#
                .to_owned(),
        ),
        _ => bad_request(),
    })
    .await;
    let tally = look(&node, "/file").await.unwrap();
    assert_eq!(tally.homes[&Home::Disk(String::new())].bytes, 10);
}

#[tokio::test]
async fn answers_that_make_no_sense_are_errors() {
    let garbage: [Answer; 6] = [
        |_, _| json("no JSON".to_owned()),
        |_, _| json(r#"{"FileStatuses":{}}"#.to_owned()),
        |_, _| {
            json(
                r#"{"FileStatuses":{"FileStatus":[{"pathSuffix":"x","length":-1,"type":"FILE"}]}}"#
                    .to_owned(),
            )
        },
        |_, _| json(String::new()),
        |_, _| vec![0xff; 100].into_response(),
        // Of a file whose blocks it does not tell.
        |_, operation| match operation {
            "LISTSTATUS" => json(
                r#"{"FileStatuses":{"FileStatus":[{"pathSuffix":"x","length":1,"type":"FILE"}]}}"#.to_owned(),
            ),
            _ => json("[]".to_owned()),
        },
    ];
    for answer in garbage {
        let (node, _) = serve(answer).await;
        let error = look(&node, "/d").await.unwrap_err().to_string();
        assert!(error.contains("not WebHDFS"), "{error}");
    }
}

#[tokio::test]
async fn servers_that_refuse_redirect_or_say_too_much_are_told_apart() {
    let cases: [(Answer, &str); 5] = [
        (|_, _| (Code::NOT_FOUND, "").into_response(), "no such path"),
        (|_, _| (Code::TEMPORARY_REDIRECT, [("location", "http://192.0.2.9/")]).into_response(), "redirects"),
        (
            |_, _| {
                let body = r#"{"RemoteException":{"exception":"StandbyException","message":"x"}}"#;
                (Code::FORBIDDEN, body).into_response()
            },
            "403 Forbidden: StandbyException",
        ),
        (|_, _| (Code::INTERNAL_SERVER_ERROR, "<html>").into_response(), "500 Internal Server Error"),
        (|_, _| vec![b' '; MOST_BYTES + 1].into_response(), "longer than"),
    ];
    for (answer, expected) in cases {
        let (node, _) = serve(answer).await;
        let error = look(&node, "/d").await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let (node, _) = serve(tree).await;
    let path = |path: &str| HdfsPath { name_node: node.clone(), path: path.into() };
    let error = asks(&node, 100).look(&path("/never"), 1).await.unwrap_err().to_string();
    assert!(error.contains("does not answer in time"), "{error}");
    drop(node);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let error = look(&closed, "/d").await.unwrap_err().to_string();
    assert!(error.contains("does not answer"), "{error}");
}

#[tokio::test]
async fn only_servers_that_the_operator_names_are_asked() {
    let (node, server) = serve(tree).await;
    let path = HdfsPath { name_node: node.clone(), path: "/d".into() };
    let error = asks("other:9870", 100).look(&path, 1).await.unwrap_err().to_string();
    assert!(error.contains("locality.name_nodes") && error.contains(&node), "{error}");
    assert!(server.asked.lock().unwrap().is_empty());
}

#[test]
fn nothing_in_a_path_gets_out_of_it() {
    let url = url("nn:9870", "/a?op=DELETE#x/%2e%2e/b c", "LISTSTATUS", "").unwrap();
    assert_eq!(url.path(), "/webhdfs/v1/a%3Fop=DELETE%23x/%252e%252e/b%20c");
    assert_eq!(url.query(), Some("op=LISTSTATUS"));
    assert_eq!(super::url("nn:9870", "/", "LISTSTATUS", "me").unwrap().path(), "/webhdfs/v1");
}

#[test]
fn a_node_is_known_by_its_name_and_addresses() {
    let here =
        Here { names: ["node7.example".to_owned(), "192.0.2.7".to_owned(), "2001:db8::7".to_owned()].into() };
    let among = |hosts: &[&str], names: &[&str]| {
        let own = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        here.among(&own(hosts), &own(names))
    };
    assert!(
        among(&["Node7.Example"], &[])
            && among(&[], &["192.0.2.7:9866"])
            && among(&[], &["2001:db8::7:9866"])
    );
    assert!(!among(&["node7"], &["192.0.2.70:9866", ":9866"]) && !among(&[""], &[]));
    assert!(!Here::new("x").is("127.0.0.1"), "every node has that one");
}
