//! What was measured, as `--json` prints it and `bench/runs` keeps it.

use serde::Serialize;

use crate::{
    alloc, churn::Churn, isolation::Row, launch::Burst, machine::Machine, net::Net, offers::Offers,
    overhead::Overhead, oversub::Oversub, runtimes::Runtimes,
};

/// The results of one invocation.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) launch: Option<Vec<Burst>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) overhead: Option<Overhead>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) runtimes: Option<Vec<Runtimes>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) churn: Option<Churn>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) isolation: Option<Vec<Row>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) net: Option<Net>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) oversub: Option<Oversub>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) offers: Option<Vec<Offers>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) alloc: Option<Vec<alloc::Row>>,
}

impl Report {
    /// Nothing measured yet.
    pub(crate) fn of(machine: Machine) -> Self {
        Self {
            machine,
            launch: None,
            overhead: None,
            runtimes: None,
            churn: None,
            isolation: None,
            net: None,
            oversub: None,
            offers: None,
            alloc: None,
        }
    }
}
