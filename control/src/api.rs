//! Requests, responses and events. Fields are only added, never renamed, within one protocol version.

mod address;
mod capture;
mod dns;
mod endpoint;
mod error;
mod limit;
mod membership;
mod nat;
mod network;
mod networks;
mod policy;
mod request;
mod status;
mod trace;

pub use address::{AddressBook, AddressHold, HeldAddress};
pub use capture::{CaptureRequest, CaptureVerdict, Captured, CapturedPacket, MAX_SNAPLEN};
pub use dns::{DnsRequest, DnsStatus};
pub use endpoint::{
    EndpointInfo, EndpointLease, EndpointRequest, EndpointState, EngineNetwork, LabelChange, link_alias,
};
pub use error::{ApiError, Problem};
pub use limit::{LimitInfo, LimitRate, LimitRequest};
pub use membership::{
    CertificateInfo, InitRequest, Invitation, InviteRequest, Joined, MembershipRequest, MembershipResponse, SecretText,
    TokenInfo,
};
pub use nat::{NatRequest, PortProtocol, PortSelector, PublishRequest, PublishedPort, UnknownProtocol};
pub use network::{
    DoctorMode, Event, Finding, FindingStatus, Flow, FlowSelector, PingProgress, PingReply, PolicyTest, PolicyView,
    Refusal, RefusedBy, RouteAdded, RouteEntry, RouteWhy, RuleMatch, Severity, TestVerdict, Verdict,
};
pub use networks::{
    AddressState, IpamAddress, IpamFinding, IpamRequest, IpamResponse, IpamUsage, NetworkCreate, NetworkHost,
    NetworkInfo, NetworkRequest,
};
pub use policy::{
    ClusterPolicyStatus, PolicyHost, PolicyHostState, PolicyRequest, PolicyRevision, PolicyStage, PolicyTexts,
    PolicyWritten,
};
pub use request::{ConfigText, EncapsulationSetting, Request, Response};
pub use status::{ControlState, DataState, FlowUse, Health, HostInfo, PeerKind, PeerStatus, Status, VersionInfo};
pub use trace::{Trace, TraceOutcome, TraceRequest, TraceStep};
