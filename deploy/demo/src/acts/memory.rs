//! A program that takes all the memory it can get.

use anyhow::Result;
use bulkhead_proto::v1::TaskReason;

use super::{Act, mib};
use crate::{
    line::Line,
    stage::{Kind, Stage, granted, usage},
};

pub(super) const ACT: Act = Act {
    name: "memory",
    title: "a memory hog, limited to 64 MiB",
    needs: Some(Kind::Memory),
    play: |stage| Box::pin(play(stage)),
};

const NAME: &str = "hog";
/// What the CLI exits with for a task that SIGKILL ended.
const KILLED: i32 = 137;

async fn play(stage: &Stage) -> Result<Line> {
    // It looks for the last ten lines of a file that has no end and no line.
    let run = ["run", "--name", NAME, "--mem", "64MiB", "--", "tail", "/dev/zero"];
    let output = stage.bulkhead(&run).await?;
    let task = stage.ended(NAME).await?;
    let (limit, usage) = (granted(&task)?.mem_bytes, usage(&task)?);
    let reason = task.status.as_ref().map(|status| status.reason()).unwrap_or_default();

    let mut line =
        Line::new(ACT.name, "a memory hog\nrun --mem 64MiB -- tail /dev/zero".to_owned(), mib(limit));
    line.measured(format!("{} at its peak", mib(usage.mem_peak_bytes)))
        .refused("more: ended it as out of memory")
        .figure("limit_bytes", limit)
        .figure("mem_peak_bytes", usage.mem_peak_bytes)
        .figure("oom_kills", usage.oom_kills)
        .figure("exit_code", output.code)
        .check(usage.mem_peak_bytes <= limit, || format!("its peak is above {}", mib(limit)))
        .check(usage.mem_peak_bytes > limit / 2, || {
            "it never came near its limit, so nothing was shown".to_owned()
        })
        .check(usage.oom_kills > 0, || "the kernel killed nothing".to_owned())
        .check(reason == TaskReason::OutOfMemory, || format!("the task's end is put down to {reason:?}"))
        .check(output.code == KILLED, || format!("`bulkhead run` exited with {}", output.code));
    Ok(line)
}
