//! Addresses held for plugins (`overlay_control::api::AddressHold`).

use std::net::IpAddr;

use overlay_control::ApiError;
use overlay_control::api::{AddressHold, Response};

use super::endpoints::refused;
use super::{Api, done};

impl Api {
    pub(super) async fn address_hold(&self, wanted: AddressHold) -> Result<Response, ApiError> {
        let before = self.core.plumbing.own_networks();
        let held = self.core.plumbing.hold(wanted).await;
        self.tell_of_blocks(&before).await?;
        Ok(Response::Held(held.map_err(|error| refused(&self.with_owner(error)))?))
    }

    pub(super) async fn address_release(&self, owner: String, address: IpAddr) -> Result<Response, ApiError> {
        let had = self.core.plumbing.release_held(address, owner).await.map_err(|error| refused(&error))?;
        Ok(done(had, Vec::new()))
    }

    pub(super) async fn address_list(&self) -> Result<Response, ApiError> {
        let book = self.core.plumbing.address_book().await.map_err(|error| refused(&error))?;
        Ok(Response::Addresses(book))
    }
}
