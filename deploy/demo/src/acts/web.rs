//! A web server on the port that it was granted, fetched over HTTP.

use anyhow::Result;
use bulkhead_proto::v1::TaskState;
use bulkhead_testkit::{
    cluster::{Verdict, until},
    http,
};

use super::Act;
use crate::{
    line::Line,
    stage::{Stage, granted_port, state, usage},
};

pub(super) const ACT: Act = Act {
    name: "web",
    title: "a web server, on the port that it was granted",
    needs: None,
    play: |stage| Box::pin(play(stage)),
};

const NAME: &str = "web";
/// The page is the task's own: nothing else on this machine would answer with it.
const SERVER: &str =
    "echo page of $BULKHEAD_TASK_ID >index.html; exec python3 -m http.server --bind 127.0.0.1 $PORT";

async fn play(stage: &Stage) -> Result<Line> {
    let run = ["run", "--name", NAME, "--ports", "1", "--detach", "--", "sh", "-c", SERVER];
    let id = stage.done(&run).await?.stdout.trim().to_owned();
    let port = granted_port(&stage.task(NAME).await?)?;
    let page = until("the web server", || async {
        let ended = stage.task(NAME).await.is_ok_and(|task| state(&task) != TaskState::Running);
        match http::get(&format!("127.0.0.1:{port}"), "/").await {
            Ok(page) => Ok(page),
            Err(error) if ended => Err(Verdict::Never(format!("the task ended; {error:#}"))),
            Err(error) => Err(Verdict::NotYet(format!("{error:#}"))),
        }
    })
    .await?;
    stage.done(&["kill", NAME]).await?;
    let task = stage.ended(NAME).await?;
    let peak = usage(&task)?.mem_peak_bytes;

    let mut line = Line::new(
        ACT.name,
        "a web server\nrun --ports 1 -- python3 -m http.server $PORT".to_owned(),
        format!("port {port}"),
    );
    line.measured(format!("HTTP 200 from port {port}, with the task's own page"))
        .refused("nothing")
        .figure("port", port)
        .figure("body_bytes", page.len())
        .check(page.trim_end() == format!("page of {id}"), || format!("port {port} answered {page:?}"))
        .check(state(&task) == TaskState::Killed, || {
            format!("after `bulkhead kill` it is {:?}", state(&task))
        });
    if peak > 0 {
        line.figure("mem_peak_bytes", peak);
    }
    Ok(line)
}
