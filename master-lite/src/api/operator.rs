//! `Operator`: questions about the cluster, and stopping a task.

use bulkhead_proto::v1::{
    ListAgentsRequest, ListAgentsResponse, ListFrameworksRequest, ListFrameworksResponse, ListOffersRequest,
    ListOffersResponse, ListTasksRequest, ListTasksResponse, ResizeTaskRequest, ResizeTaskResponse,
    StopTaskRequest, StopTaskResponse, operator_server::Operator,
};
use tonic::{Request, Response, Status};

use super::driver::Handle;
use crate::core::StopError;

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
        let tasks = self.driver.query(move |core| core.list_tasks(&request)).await?;
        Ok(Response::new(ListTasksResponse { tasks }))
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
        match self.driver.stop_task(request.into_inner()).await? {
            Ok(()) => Ok(Response::new(StopTaskResponse {})),
            Err(problem @ StopError::NotFound { .. }) => Err(Status::not_found(problem.to_string())),
            Err(problem @ StopError::Ambiguous { .. }) => {
                Err(Status::failed_precondition(problem.to_string()))
            }
        }
    }

    async fn resize_task(
        &self,
        _request: Request<ResizeTaskRequest>,
    ) -> Result<Response<ResizeTaskResponse>, Status> {
        Err(Status::unimplemented("this master resizes no tasks"))
    }
}
