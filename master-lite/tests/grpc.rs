//! The whole master on a loopback port, with real clients.

#[cfg(test)]
mod clients;

use bulkhead_master::{Config, ServeError, serve};
use bulkhead_proto::v1::{
    Accept, AcknowledgeStatus, AgentMessage, Amounts, Detach, ExplainFrameworkRequest, Heartbeat,
    ListRolesRequest, ListTasksRequest, Reconcile, SchedulerCall, SetRoleRequest, StopTaskRequest,
    TaskReason, TaskState, agent_link_client::AgentLinkClient, agent_message,
    operator_client::OperatorClient, scheduler_call::Call, scheduler_client::SchedulerClient,
    scheduler_event::Event,
};
use clients::{AgentEnd, Master, SchedulerEnd, http_get, resources, status, task};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

#[tokio::test]
async fn a_task_goes_from_offer_to_end() {
    let master = Master::start(Config::default()).await;
    let mut agent = AgentEnd::register(&master, "a", resources(4_000, 1 << 30)).await;
    let mut framework = SchedulerEnd::subscribe(&master, "f").await;
    let offer = framework.offer().await;
    assert_eq!(offer.resources, Some(resources(4_000, 1 << 30)));

    let spec = task("t", 1_000, 1 << 20);
    let accept = Accept { offer_ids: vec![offer.offer_id], tasks: vec![spec.clone()], refuse_ms: 60_000 };
    framework.call(Call::Accept(accept)).await;
    let launch = agent.launch().await;
    assert_eq!((launch.framework_id.as_str(), launch.task), ("f", Some(spec)));

    for (sequence, state) in [(1, TaskState::Staging), (2, TaskState::Running), (3, TaskState::Finished)] {
        agent.say(agent_message::Message::Status(status("f", "t", state, sequence))).await;
        let update = framework.update().await;
        assert_eq!((update.state(), update.sequence), (state, sequence));
        framework.call(Call::Acknowledge(AcknowledgeStatus { task_id: "t".into(), sequence })).await;
        assert_eq!(agent.acknowledged().await, ("t".to_owned(), sequence));
    }
    let again = framework.offer().await;
    assert_eq!(again.resources, Some(resources(4_000, 1 << 30)));

    let mut operator = OperatorClient::connect(master.url()).await.unwrap();
    let tasks = operator.list_tasks(ListTasksRequest::default()).await.unwrap().into_inner().tasks;
    assert_eq!(tasks[0].status.as_ref().unwrap().state(), TaskState::Finished);
    master.stop().await;
}

#[tokio::test]
async fn an_offer_accepted_twice_is_refused_by_name() {
    let master = Master::start(Config::default()).await;
    let mut agent = AgentEnd::register(&master, "a", resources(4_000, 1 << 30)).await;
    let mut framework = SchedulerEnd::subscribe(&master, "f").await;
    let offer = framework.offer().await;
    for id in ["t1", "t2"] {
        let tasks = vec![task(id, 1_000, 1 << 20)];
        framework
            .call(Call::Accept(Accept { offer_ids: vec![offer.offer_id.clone()], tasks, refuse_ms: 60_000 }))
            .await;
    }
    let update = framework.update().await;
    assert_eq!((update.task_id.as_str(), update.reason()), ("t2", TaskReason::OfferGone));
    assert_eq!(agent.launch().await.task.unwrap().task_id, "t1");
    master.stop().await;
}

#[tokio::test]
async fn a_stream_that_begins_with_something_else_is_refused() {
    let master = Master::start(Config::default()).await;
    let mut agents = AgentLinkClient::connect(master.url()).await.unwrap();
    for first in [Some(agent_message::Message::Heartbeat(Heartbeat {})), None] {
        let messages = tokio_stream::iter([AgentMessage { message: first }]);
        let status = agents.session(messages).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("Register"), "{status}");
    }
    let status = agents.session(tokio_stream::empty()).await.unwrap_err();
    assert!(status.message().contains("without a message"), "{status}");

    let mut schedulers = SchedulerClient::connect(master.url()).await.unwrap();
    let calls = tokio_stream::iter([SchedulerCall { call: Some(Call::Detach(Detach {})) }]);
    let status = schedulers.session(calls).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("Subscribe"), "{status}");
    master.stop().await;
}

#[tokio::test]
async fn an_agent_that_cannot_register_is_told_why() {
    let master = Master::start(Config::default()).await;
    let mut agent = AgentEnd::open(&master, "not an id", resources(1, 1)).await;
    let status = agent.end().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("not an id"), "{status}");
    master.stop().await;
}

#[tokio::test]
async fn a_newer_agent_session_ends_the_older_one() {
    let master = Master::start(Config::default()).await;
    let mut old = AgentEnd::register(&master, "a", resources(1_000, 1 << 30)).await;
    let mut new = AgentEnd::register(&master, "a", resources(1_000, 1 << 30)).await;
    let status = old.end().await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    assert!(status.message().contains("newer stream"), "{status}");

    let mut framework = SchedulerEnd::subscribe(&master, "f").await;
    let offer = framework.offer().await;
    let tasks = vec![task("t", 1_000, 1 << 20)];
    framework.call(Call::Accept(Accept { offer_ids: vec![offer.offer_id], tasks, refuse_ms: 0 })).await;
    assert_eq!(new.launch().await.framework_id, "f");
    master.stop().await;
}

#[tokio::test]
async fn an_agent_that_hangs_up_takes_its_offers_along() {
    let master = Master::start(Config::default()).await;
    let agent = AgentEnd::register(&master, "a", resources(1_000, 1 << 30)).await;
    let mut framework = SchedulerEnd::subscribe(&master, "f").await;
    let offer = framework.offer().await;
    drop(agent);
    let rescinded = framework
        .wait_for(|event| match event {
            Event::Rescind(rescind) => Some(rescind.offer_ids),
            _ => None,
        })
        .await;
    assert_eq!(rescinded, [offer.offer_id]);
    master.stop().await;
}

#[tokio::test]
async fn a_detached_framework_reads_the_end_of_its_stream_and_its_task_runs_on() {
    let master = Master::start(Config::default()).await;
    let mut agent = AgentEnd::register(&master, "a", resources(1_000, 1 << 30)).await;
    let mut framework = SchedulerEnd::subscribe(&master, "f").await;
    let offer = framework.offer().await;
    let tasks = vec![task("t", 1_000, 1 << 20)];
    framework.call(Call::Accept(Accept { offer_ids: vec![offer.offer_id], tasks, refuse_ms: 0 })).await;
    agent.launch().await;
    framework.call(Call::Detach(Detach {})).await;
    framework.end().await.unwrap();
    agent.say(agent_message::Message::Status(status("f", "t", TaskState::Running, 1))).await;
    assert_eq!(agent.acknowledged().await, ("t".to_owned(), 1));

    let mut operator = OperatorClient::connect(master.url()).await.unwrap();
    operator.stop_task(StopTaskRequest { task_id: "t".into(), ..Default::default() }).await.unwrap();
    assert_eq!(agent.killed().await, ("t".to_owned(), TaskReason::KilledByOperator));
    let status = operator
        .stop_task(StopTaskRequest { task_id: "who".into(), ..Default::default() })
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    master.stop().await;
}

/// A framework that asks for more than it reads is cut off; the core and everybody else go on.
#[tokio::test]
async fn a_reader_that_does_not_keep_up_is_cut_and_told_so() {
    let master = Master::start(Config { session_queue: 8, ..Config::default() }).await;
    let mut slow = SchedulerEnd::subscribe(&master, "slow").await;
    let names: Vec<String> = (0..1_000).map(|i| format!("{i:0128}")).collect();
    slow.call(Call::Reconcile(Reconcile { task_ids: names })).await;
    let status = slow.end().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("read faster"), "{status}");

    let metrics = http_get(master.address, "/metrics").await;
    assert!(metrics.contains("bulkhead_master_slow_sessions_total 1"), "{metrics}");
    assert!(metrics.contains(r#"bulkhead_master_frameworks{state="connected"} 0"#), "{metrics}");
    let mut quick = SchedulerEnd::subscribe(&master, "quick").await;
    quick.call(Call::Reconcile(Reconcile { task_ids: vec!["t".into()] })).await;
    assert_eq!(quick.update().await.reason(), TaskReason::UnknownTask);
    master.stop().await;
}

#[tokio::test]
async fn metrics_and_health_are_on_the_same_port() {
    let master = Master::start(Config::default()).await;
    let _agent = AgentEnd::register(&master, "a", resources(4_000, 1 << 30)).await;
    let mut framework = SchedulerEnd::subscribe(&master, "f").await;
    framework.offer().await;
    assert!(http_get(master.address, "/healthz").await.ends_with("ok\n"));
    let metrics = http_get(master.address, "/metrics").await;
    for line in [
        r#"bulkhead_master_agents{state="connected"} 1"#,
        r#"bulkhead_master_offers_total{what="sent"} 1"#,
        r#"bulkhead_master_resources{part="offered",resource="cpu_milli"} 4000"#,
        "bulkhead_master_offers_outstanding 1",
        "bulkhead_master_allocation_seconds_count",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(http_get(master.address, "/nothing").await.starts_with("HTTP/1.1 "));
    master.stop().await;
}

#[tokio::test]
async fn a_master_that_shuts_down_ends_every_stream_with_a_reason() {
    let master = Master::start(Config::default()).await;
    let mut agent = AgentEnd::register(&master, "a", resources(1_000, 1 << 30)).await;
    let mut framework = SchedulerEnd::subscribe(&master, "f").await;
    master.stop().await;
    for status in [agent.end().await.unwrap_err(), framework.end().await.unwrap_err()] {
        assert_eq!(status.code(), Code::Unavailable, "{status}");
    }
}

#[tokio::test]
async fn a_framework_keeps_its_tasks_over_a_restart_of_the_master() {
    let first = Master::start(Config::default()).await;
    let mut agent = AgentEnd::register(&first, "a", resources(1_000, 1 << 30)).await;
    first.stop().await;
    agent.end().await.unwrap_err();

    let second = Master::start(Config::default()).await;
    let running = clients::listed("f", task("t", 500, 1 << 20), TaskState::Running, 2);
    let mut agent = AgentEnd::register_with(&second, "a", resources(1_000, 1 << 30), vec![running]).await;
    let mut framework = SchedulerEnd::subscribe(&second, "f").await;
    let update = framework.update().await;
    assert_eq!((update.state(), update.sequence), (TaskState::Running, 2));
    framework.call(Call::Acknowledge(AcknowledgeStatus { task_id: "t".into(), sequence: 2 })).await;
    assert_eq!(agent.acknowledged().await, ("t".to_owned(), 2));
    second.stop().await;
}

#[tokio::test]
async fn a_taken_port_says_what_to_do() {
    let master = Master::start(Config::default()).await;
    let config = Config { listen: master.address, ..Config::default() };
    let error = serve(&config, std::future::pending()).await.unwrap_err();
    assert!(matches!(error, ServeError::AddressInUse { address } if address == master.address));
    assert!(error.to_string().contains("--listen"), "{error}");
    master.stop().await;
}

#[tokio::test]
async fn the_address_is_written_where_it_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("address");
    let config = Config { address_file: Some(path.clone()), ..Config::default() };
    let master = Master::start(config).await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", master.address));
    master.stop().await;

    let config = Config {
        address_file: Some(dir.path().join("no/such")),
        listen: ([127, 0, 0, 1], 0).into(),
        ..Config::default()
    };
    let error = serve(&config, std::future::pending()).await.unwrap_err();
    assert!(matches!(error, ServeError::AddressFile { .. }), "{error}");
}

/// Messages may come faster than one at a time: a burst of launches arrives whole and in order.
#[tokio::test]
async fn a_hundred_tasks_launch_from_one_accept_in_order() {
    let master = Master::start(Config::default()).await;
    let mut agent = AgentEnd::register(&master, "a", resources(100_000, 1 << 30)).await;
    let mut framework = SchedulerEnd::subscribe(&master, "f").await;
    let offer = framework.offer().await;
    let tasks: Vec<_> = (0..100).map(|i| task(&format!("t{i}"), 1_000, 1 << 20)).collect();
    framework.call(Call::Accept(Accept { offer_ids: vec![offer.offer_id], tasks, refuse_ms: 0 })).await;
    for i in 0..100 {
        assert_eq!(agent.launch().await.task.unwrap().task_id, format!("t{i}"));
    }
    master.stop().await;
}

/// Half a message, or none at all, must not disturb anybody.
#[tokio::test]
async fn a_client_that_breaks_off_in_the_middle_changes_nothing() {
    let master = Master::start(Config::default()).await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<AgentMessage>(1);
    let mut agents = AgentLinkClient::connect(master.url()).await.unwrap();
    let pending = tokio::spawn(async move { agents.session(ReceiverStream::new(receiver)).await.map(drop) });
    drop(sender);
    assert!(pending.await.unwrap().is_err());
    let mut framework = SchedulerEnd::subscribe(&master, "f").await;
    framework.call(Call::Reconcile(Reconcile { task_ids: vec!["t".into()] })).await;
    assert_eq!(framework.update().await.task_id, "t");
    master.stop().await;
}

#[tokio::test]
async fn operators_set_roles_and_ask_why() {
    let master = Master::start(Config::default()).await;
    let _agent = AgentEnd::register(&master, "a", resources(4_000, 1 << 30)).await;
    let mut framework = SchedulerEnd::subscribe(&master, "f").await;
    framework.offer().await;
    let mut operator = OperatorClient::connect(master.url()).await.unwrap();
    let kinds = [("cpu_milli".to_owned(), 2_000)].into();
    let set = SetRoleRequest {
        role: "default".into(),
        limit: Some(Amounts { kinds }),
        ..SetRoleRequest::default()
    };
    let settings = operator.set_role(set.clone()).await.unwrap().into_inner().settings.unwrap();
    assert_eq!(settings.limit["cpu_milli"], 2_000);
    let roles = operator.list_roles(ListRolesRequest {}).await.unwrap().into_inner().roles;
    assert_eq!((roles.len(), roles[0].is_set, roles[0].held["cpu_milli"]), (1, true, 4_000));
    let bad = SetRoleRequest { weight: Some(f64::NAN), ..set.clone() };
    assert_eq!(operator.set_role(bad).await.unwrap_err().code(), Code::InvalidArgument);
    let kinds = [("cpu_milli".to_owned(), 3_000)].into();
    let impossible = SetRoleRequest { limit: None, guarantee: Some(Amounts { kinds }), ..set };
    assert_eq!(operator.set_role(impossible).await.unwrap_err().code(), Code::FailedPrecondition);

    let ask = |framework_id: &str| ExplainFrameworkRequest {
        framework_id: framework_id.into(),
        ..ExplainFrameworkRequest::default()
    };
    let why = operator.explain_framework(ask("f")).await.unwrap().into_inner();
    assert_eq!((why.offer_count, why.room["cpu_milli"], why.entitled_share), (1, 0, 1.0));
    assert_eq!(operator.explain_framework(ask("g")).await.unwrap_err().code(), Code::NotFound);
    master.stop().await;
}
