//! A master with a policy of its own: how an organisation decides itself who comes first.
//!
//! Here it is whoever holds the least CPU for its weight, whatever else it holds; the roles below `batch` come after all
//! others. Quotas, refusals, minima and turns among equals are the allocator's and stay as they are.
//!
//! ```text
//! echo '[allocator]
//! policy = "least-cpu"' >own.toml
//! cargo run -p bulkhead-master --example own_policy -- own.toml
//! ```

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use bulkhead_master::{
    Config, Options,
    allocator::{CPU, Policy, Rank, Standing},
    serve_with,
};

/// Orders by CPU alone.
struct LeastCpu;

impl Policy for LeastCpu {
    fn name(&self) -> &str {
        "least-cpu"
    }

    fn rank(&self, standing: &Standing<'_>) -> Rank {
        let is_batch = standing.role == "batch" || standing.role.starts_with("batch/");
        Rank { tier: i64::from(is_batch), need: standing.held.0[CPU] as f64 / standing.weight }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let file = std::env::args_os().nth(1).map(PathBuf::from).context("name a configuration file")?;
    let config = Config::load(Options::default(), Some(&file))?;
    let interrupted = async { drop(tokio::signal::ctrl_c().await) };
    let master = serve_with(&config, vec![Box::new(LeastCpu)], interrupted).await?;
    master.finished().await?;
    Ok(())
}
