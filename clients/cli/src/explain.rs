//! `bulkhead explain`: where each number of an agent's offers comes from, in its own words, and why a framework is offered
//! what it is, in the words of the master.

use bulkhead_proto::{
    explain::{framework, lines},
    v1::{ExplainFrameworkRequest, ExplainRequest, ExplainResponse},
};

use crate::{
    agent_ref,
    args::ExplainArgs,
    connect::{self, Address, operator, refused_by_master, status_text},
    error::CliError,
    framework_ref,
    list::{agents_of, frameworks_of, view},
    quantity::span,
    screen::Screen,
};

/// `bulkhead explain`.
pub(crate) async fn explain(address: &Address, screen: Screen, args: &ExplainArgs) -> Result<(), CliError> {
    match (&args.framework, &args.agent) {
        (Some(framework), agent) => explain_framework(address, screen, framework, agent.as_deref()).await,
        (None, agent) => explain_agent(address, screen, agent.as_deref().unwrap_or_default()).await,
    }
}

async fn explain_agent(address: &Address, screen: Screen, wanted: &str) -> Result<(), CliError> {
    let agents = agents_of(&mut operator(address).await?).await?;
    let agent = agent_ref::resolve(&agents, wanted)?;
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

async fn explain_framework(
    address: &Address,
    screen: Screen,
    wanted: &str,
    agent: Option<&str>,
) -> Result<(), CliError> {
    let mut operator = operator(address).await?;
    let framework_id =
        framework_ref::resolve(&frameworks_of(&mut operator).await?, wanted)?.framework_id.clone();
    let agent_id = match agent {
        Some(wanted) => agent_ref::resolve(&agents_of(&mut operator).await?, wanted)?.agent_id.clone(),
        None => String::new(),
    };
    let answer = operator.explain_framework(ExplainFrameworkRequest { framework_id, agent_id }).await;
    let answer = answer.map_err(refused_by_master("ExplainFramework"))?.into_inner();
    if screen.json {
        return screen.document(&answer);
    }
    screen.out(&view(screen).explanation(&framework::lines(&answer)))
}
