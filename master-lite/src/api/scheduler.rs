//! `Scheduler`: one stream a framework.

use bulkhead_proto::v1::{SchedulerCall, SchedulerEvent, scheduler_call::Call, scheduler_server::Scheduler};
use tonic::{Request, Response, Status, Streaming};

use super::{
    driver::{Handle, Peer},
    session::{self, Outgoing},
};
use crate::core::Event;

pub(super) struct Service {
    driver: Handle,
}

impl Service {
    pub(super) fn new(driver: Handle) -> Self {
        Self { driver }
    }
}

#[tonic::async_trait]
impl Scheduler for Service {
    type SessionStream = Outgoing<SchedulerEvent>;

    async fn session(
        &self,
        request: Request<Streaming<SchedulerCall>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut inbound = request.into_inner();
        let Some(Call::Subscribe(subscribe)) = session::first(&mut inbound, "Subscribe").await?.call else {
            return Err(Status::invalid_argument("the first call of a framework's stream must be Subscribe"));
        };
        let framework = subscribe.framework.ok_or_else(|| {
            Status::invalid_argument(
                "Subscribe carries no framework: send FrameworkInfo, with a name at least",
            )
        })?;
        let (outbox, outgoing, closed) = session::outbox(self.driver.session_queue());
        let first = |session| Event::Subscribe { session, framework };
        let session = self.driver.open(Peer::Scheduler(outbox), first).await?;
        let event = move |c: SchedulerCall| c.call.map(|call| Event::Call { session, call });
        tokio::spawn(session::read(inbound, self.driver.clone(), session, closed, event));
        Ok(Response::new(outgoing))
    }
}
