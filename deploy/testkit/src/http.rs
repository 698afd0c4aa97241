//! Just enough HTTP to fetch a page.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The body of a page of `address` (host:port) that is answered with 200.
///
/// # Errors
/// Where nobody answers so, within ten seconds.
pub async fn get(address: &str, path: &str) -> Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.context("connect")?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.context("ask")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.context("read the answer")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end of its head")?;
        ensure!(head.split(' ').nth(1) == Some("200"), "the answer is {:?}", head.lines().next());
        Ok(body.to_owned())
    };
    let answer = timeout(ANSWER_WITHIN, exchange).await.context("no answer in time");
    answer.and_then(|fetched| fetched).with_context(|| format!("GET http://{address}{path}"))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn answering(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 256];
            let count = stream.read(&mut asked).await.unwrap();
            assert!(asked[..count].starts_with(b"GET /page HTTP/1.0\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        address
    }

    #[tokio::test]
    async fn a_page_is_its_body_and_anything_but_200_an_error() {
        let good = answering("HTTP/1.0 200 OK\r\nx: y\r\n\r\nhere\n").await;
        assert_eq!(get(&good, "/page").await.unwrap(), "here\n");
        let bad = answering("HTTP/1.0 404 Not Found\r\n\r\nhere\n").await;
        let error = format!("{:#}", get(&bad, "/page").await.unwrap_err());
        assert!(error.contains("404") && error.contains("/page"), "{error}");
    }
}
