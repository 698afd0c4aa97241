//! `Operator`: questions about the cluster, stopping or resizing a task, and what holds for roles.

use bulkhead_proto::v1::{
    ExplainFrameworkRequest, ExplainFrameworkResponse, ListAgentsRequest, ListAgentsResponse,
    ListFrameworksRequest, ListFrameworksResponse, ListOffersRequest, ListOffersResponse, ListRolesRequest,
    ListRolesResponse, ListTasksRequest, ListTasksResponse, ResizeTaskRequest, ResizeTaskResponse,
    SetRoleRequest, SetRoleResponse, StopTaskRequest, StopTaskResponse, operator_server::Operator,
};
use tonic::{Request, Response, Status};

use super::driver::Handle;
use crate::core::{ResizeError, SetRoleError, StopError};

pub(super) struct Service {
    driver: Handle,
}

impl Service {
    pub(super) fn new(driver: Handle) -> Self {
        Self { driver }
    }
}

#[tonic::async_trait]
impl Operator for Service {
    async fn list_agents(
        &self,
        _: Request<ListAgentsRequest>,
    ) -> Result<Response<ListAgentsResponse>, Status> {
        let agents = self.driver.query(|core| core.list_agents()).await?;
        Ok(Response::new(ListAgentsResponse { agents }))
    }

    async fn list_frameworks(
        &self,
        _: Request<ListFrameworksRequest>,
    ) -> Result<Response<ListFrameworksResponse>, Status> {
        let frameworks = self.driver.query(|core| core.list_frameworks()).await?;
        Ok(Response::new(ListFrameworksResponse { frameworks }))
    }

    async fn list_tasks(
        &self,
        request: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        let request = request.into_inner();
        let page = self.driver.query(move |core| core.list_tasks(&request)).await?;
        page.map(Response::new).map_err(|e| Status::invalid_argument(e.to_string()))
    }

    async fn list_offers(
        &self,
        _: Request<ListOffersRequest>,
    ) -> Result<Response<ListOffersResponse>, Status> {
        let offers = self.driver.query(|core| core.list_offers()).await?;
        Ok(Response::new(ListOffersResponse { offers }))
    }

    async fn stop_task(
        &self,
        request: Request<StopTaskRequest>,
    ) -> Result<Response<StopTaskResponse>, Status> {
        let stopped = self.driver.stop_task(request.into_inner()).await?;
        stopped.map(|()| Response::new(StopTaskResponse {})).map_err(|e| not_found(&e))
    }

    async fn resize_task(
        &self,
        request: Request<ResizeTaskRequest>,
    ) -> Result<Response<ResizeTaskResponse>, Status> {
        match self.driver.resize_task(request.into_inner()).await? {
            Ok(grant) => Ok(Response::new(ResizeTaskResponse { grant: Some(grant) })),
            Err(ResizeError::Task(problem)) => Err(not_found(&problem)),
            Err(refused) => Err(Status::failed_precondition(refused.to_string())),
        }
    }

    async fn list_roles(&self, _: Request<ListRolesRequest>) -> Result<Response<ListRolesResponse>, Status> {
        let roles = self.driver.query(|core| core.list_roles()).await?;
        Ok(Response::new(ListRolesResponse { roles }))
    }

    async fn set_role(&self, request: Request<SetRoleRequest>) -> Result<Response<SetRoleResponse>, Status> {
        match self.driver.set_role(request.into_inner()).await? {
            Ok(settings) => Ok(Response::new(SetRoleResponse { settings: Some(settings) })),
            Err(problem @ SetRoleError::Quota(_)) => Err(Status::failed_precondition(problem.to_string())),
            Err(problem) => Err(Status::invalid_argument(problem.to_string())),
        }
    }

    async fn explain_framework(
        &self,
        request: Request<ExplainFrameworkRequest>,
    ) -> Result<Response<ExplainFrameworkResponse>, Status> {
        let request = request.into_inner();
        let explained = self.driver.query(move |core| core.explain_framework(&request)).await?;
        explained.map(Response::new).map_err(|e| Status::not_found(e.to_string()))
    }
}

fn not_found(problem: &StopError) -> Status {
    match problem {
        StopError::NotFound { .. } => Status::not_found(problem.to_string()),
        StopError::Ambiguous { .. } => Status::failed_precondition(problem.to_string()),
    }
}
