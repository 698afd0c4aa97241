//! `/metrics` and `/healthz`. Both ask the core, so that a master whose core does not answer is not healthy.

use std::time::Duration;

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::driver::Handle;
use crate::metrics::Metrics;

/// A core that has not looked at a question for this long is stuck.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// The content type of Prometheus's text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4";

pub(super) fn add_routes(router: Router, driver: Handle, metrics: Metrics) -> Router {
    let health = driver.clone();
    router
        .route("/metrics", get(move || render(driver.clone(), metrics.clone())))
        .route("/healthz", get(move || healthz(health.clone())))
}

async fn render(driver: Handle, metrics: Metrics) -> Response {
    let state = driver.query(|core| (core.gauges(), core.counters().clone())).await;
    let Ok((gauges, counters)) = state else { return unavailable("the master is shutting down\n") };
    match metrics.render(&gauges, &counters) {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(e) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("metrics cannot be written: {e}\n")).into_response()
        }
    }
}

async fn healthz(driver: Handle) -> Response {
    match tokio::time::timeout(HEALTH_TIMEOUT, driver.query(|_| ())).await {
        Ok(Ok(())) => "ok\n".into_response(),
        Ok(Err(_)) => unavailable("the master is shutting down\n"),
        Err(_) => unavailable("the core does not answer\n"),
    }
}

fn unavailable(text: &'static str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}
