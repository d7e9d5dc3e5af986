//! Published ports: what `overlay_control::api::NatRequest` means.

use overlay_control::ApiError;
use overlay_control::api::{NatRequest, Response};
use tokio::sync::oneshot;

use super::{Api, done, ended};
use crate::core::Change;

impl Api {
    pub(super) async fn nat(&self, request: NatRequest) -> Result<Response, ApiError> {
        let plumbing = &self.core.plumbing;
        match request {
            NatRequest::Publish(request) => {
                let (port, is_new) = plumbing.publish(request).await.map_err(ApiError::from)?;
                // Also when it is not new: a caller that asks again may not have waited for the first answer.
                self.in_force().await?;
                if is_new {
                    self.core.events.info("port-published", Some(&port.owner), port.to_string());
                }
                Ok(Response::PublishedPorts(vec![port]))
            }
            NatRequest::Unpublish(selector) => {
                let gone = plumbing.unpublish(selector).await.map_err(ApiError::from)?;
                if !gone.is_empty() {
                    self.in_force().await?;
                }
                for port in &gone {
                    self.core.events.info("port-unpublished", Some(&port.owner), port.to_string());
                }
                Ok(done(
                    !gone.is_empty(),
                    gone.iter().map(|port| format!("{port} is not published any more")).collect(),
                ))
            }
            NatRequest::List => Ok(Response::PublishedPorts(plumbing.published().await.map_err(ApiError::from)?)),
        }
    }

    /// Waits until the packet path knows what the plumbing told.
    async fn in_force(&self) -> Result<(), ApiError> {
        let (done, rebuilt) = oneshot::channel();
        self.core.changes.send(Change::Rebuild(done)).await.map_err(|_| ended("director"))?;
        rebuilt.await.map_err(|_| ended("director"))
    }
}
