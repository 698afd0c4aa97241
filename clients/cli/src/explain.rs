//! `bulkhead explain`: where each number of an agent's offers comes from, in its own words.

use bulkhead_proto::{
    explain::lines,
    v1::{ExplainRequest, ExplainResponse},
};

use crate::{
    agent_ref::resolve,
    args::ExplainArgs,
    connect::{self, Address, operator, status_text},
    error::CliError,
    list::{agents_of, view},
    quantity::span,
    screen::Screen,
};

/// `bulkhead explain`.
pub(crate) async fn explain(address: &Address, screen: Screen, args: &ExplainArgs) -> Result<(), CliError> {
    let agents = agents_of(&mut operator(address).await?).await?;
    let agent = resolve(&agents, &args.agent)?;
    let answer = connect::agent(&agent.api_address).await?.explain(ExplainRequest {}).await;
    let answer = answer.map_err(|status| CliError::Refused {
        who: format!("agent {}", agent.hostname),
        call: "Explain",
        message: status_text(&status),
    })?;
    show(screen, &answer.into_inner())
}

fn show(screen: Screen, answer: &ExplainResponse) -> Result<(), CliError> {
    if screen.json {
        return screen.document(answer);
    }
    let provenance = answer.provenance.clone().unwrap_or_default();
    screen.note(
        &provenance.measured_ms_ago.map_or_else(
            || "nothing was measured yet".to_owned(),
            |ago| format!("measured {} ago", span(ago)),
        ),
    );
    screen.out(&view(screen).explanation(&lines(&provenance)))
}
