//! `AgentLink`: one stream an agent.

use bulkhead_proto::v1::{AgentMessage, agent_link_server::AgentLink, agent_message::Message};
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
impl AgentLink for Service {
    type SessionStream = Outgoing<bulkhead_proto::v1::MasterMessage>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut inbound = request.into_inner();
        let Some(Message::Register(register)) = session::first(&mut inbound, "Register").await?.message
        else {
            return Err(Status::invalid_argument("the first message of an agent's stream must be Register"));
        };
        let (outbox, outgoing, closed) = session::outbox(self.driver.session_queue());
        let first = |session| Event::AgentRegister { session, register };
        let session = self.driver.open(Peer::Agent(outbox), first).await?;
        let event = move |m: AgentMessage| m.message.map(|message| Event::AgentSaid { session, message });
        tokio::spawn(session::read(inbound, self.driver.clone(), session, closed, event));
        Ok(Response::new(outgoing))
    }
}
