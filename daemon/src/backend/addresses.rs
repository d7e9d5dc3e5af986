//! Addresses of this host: `overlayctl ipam`.

use overlay_control::ApiError;
use overlay_control::api::{IpamRequest, IpamResponse, Response};

use super::{Api, done};
use crate::plumbing::PlumbingError;
use crate::plumbing::ipam::Holder;

impl Api {
    pub(super) async fn ipam(&self, request: IpamRequest) -> Result<Response, ApiError> {
        let refused = |error: PlumbingError| ApiError::from(self.with_owner(error));
        let plumbing = &self.core.plumbing;
        match request {
            IpamRequest::Show => Ok(Response::Ipam(IpamResponse::Usage(plumbing.usage().await.map_err(refused)?))),
            IpamRequest::List => {
                Ok(Response::Ipam(IpamResponse::Addresses(plumbing.addresses().await.map_err(refused)?)))
            }
            IpamRequest::Check { fix } => {
                let findings = plumbing.check_addresses(fix).await.map_err(refused)?;
                for finding in findings.iter().filter(|finding| finding.fixed) {
                    self.core.events.info("ipam-fixed", None, finding.what.clone());
                }
                Ok(Response::Ipam(IpamResponse::Findings(findings)))
            }
            IpamRequest::Release { address } => {
                let what = match plumbing.release(address).await.map_err(refused)? {
                    Holder::Reserved => format!("{address} is no longer reserved"),
                    _ => format!("{address} rests no longer"),
                };
                Ok(done(true, vec![what]))
            }
            IpamRequest::Reserve { address } => {
                let changed = plumbing.reserve(address).await.map_err(refused)?;
                let note = if changed { "is reserved" } else { "was reserved already" };
                Ok(done(changed, vec![format!("{address} {note}")]))
            }
        }
    }
}
