//! What can happen to the master.

use bulkhead_proto::v1::{
    FrameworkInfo, Register, ResizeTaskRequest, SetRoleRequest, StopTaskRequest, agent_message,
    scheduler_call,
};

use crate::ids::{RequestId, SessionId};

/// One thing that happened. Sessions are numbered by whoever feeds the core; events of a session
/// that was closed, or that never opened, change nothing.
#[derive(Clone, Debug)]
pub enum Event {
    /// An agent opened a stream.
    AgentRegister {
        /// Its stream.
        session: SessionId,
        /// Its first message.
        register: Register,
    },
    /// An agent's later message.
    AgentSaid {
        /// Its stream.
        session: SessionId,
        /// What it said.
        message: agent_message::Message,
    },
    /// A framework opened a stream.
    Subscribe {
        /// Its stream.
        session: SessionId,
        /// As what.
        framework: FrameworkInfo,
    },
    /// A framework's later call.
    Call {
        /// Its stream.
        session: SessionId,
        /// What it wants.
        call: scheduler_call::Call,
    },
    /// A stream ended, or was cut because its reader did not keep up.
    SessionEnded {
        /// Which.
        session: SessionId,
    },
    /// An operator stops a task.
    StopTask {
        /// Which call waits for [`Effect::Answer`](super::Effect::Answer).
        request: RequestId,
        /// What to stop.
        stop: StopTaskRequest,
    },
    /// An operator gives a task another grant.
    ResizeTask {
        /// Which call waits for [`Effect::ResizeAnswer`](super::Effect::ResizeAnswer).
        request: RequestId,
        /// Which task, and what it is to hold.
        resize: ResizeTaskRequest,
    },
    /// An operator changes what is said of a role.
    SetRole {
        /// Which call waits for [`Effect::RoleAnswer`](super::Effect::RoleAnswer).
        request: RequestId,
        /// Which role, and what holds from now on.
        set: SetRoleRequest,
    },
    /// Nothing but time has passed.
    Tick,
}
