//! `bulkhead-agent explain`: where each number of what this node offers comes from.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use bulkhead_agent::{api::SOCKET, config::Config};
use bulkhead_proto::{
    explain::lines,
    v1::{ExplainRequest, Provenance, agent_client::AgentClient},
};
use clap::Args;
use comfy_table::{Table, presets};

/// What `explain` takes.
#[derive(Args)]
pub(super) struct Explain {
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

#[expect(clippy::print_stdout, reason = "the output of this subcommand")]
pub(super) async fn run(args: &Explain, config: &Config) -> Result<ExitCode> {
    let socket = std::path::absolute(config.work_dir.join(SOCKET)).context("find the work directory")?;
    let socket = socket.display();
    let mut agent = AgentClient::connect(format!("unix://{socket}")).await.with_context(|| {
        format!("no agent answers on {socket}: name the work directory of one that runs with --work-dir or --config")
    })?;
    let answer = agent.explain(ExplainRequest {}).await.context("ask the agent")?.into_inner();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        println!("{}", table(&answer.provenance.unwrap_or_default()));
    }
    Ok(ExitCode::SUCCESS)
}

fn table(provenance: &Provenance) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["OF", "PART", "AMOUNT", "WHY"]);
    for line in lines(provenance) {
        table.add_row([line.what.as_str(), line.part, &line.amount, &line.why]);
    }
    table
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::v1::{HeldBackFor, KindOrigin};

    use super::*;

    #[test]
    fn each_number_has_its_reason_beside_it() {
        let kind = KindOrigin {
            kind: "cpu_milli".into(),
            capacity: 4000,
            reserve: 100,
            free: 3900,
            floor: 100,
            reserve_for: HeldBackFor::Floor.into(),
            ..KindOrigin::default()
        };
        let text = table(&Provenance { kinds: vec![kind], ..Provenance::default() }).to_string();
        for expected in ["CPU", "3.9", "offered as guaranteed", "0.1 as set (reserve_cpu_milli)"] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }
}
