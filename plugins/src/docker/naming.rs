//! Names of containers for the overlay's server of names. dockerd tells drivers none; it is asked for them once the container
//! is joined, and for aliases once it runs.

use std::io;
use std::time::Duration;

use overlay_wire::gossip::names::is_label;

use super::dockerd::DockerNetwork;
use super::driver::{Deadline, Driver, endpoint_name};
use super::refusal::Refusal;
use super::state::{Endpoint, State};

/// Names of one endpoint at most, as the daemon has it.
const MAX_NAMES: usize = 16;
/// Characters of a container's id that are a name.
const SHORT_ID: usize = 12;
/// How long dockerd may take to answer; while it starts a container it does not.
const WITHIN: Duration = Duration::from_secs(2);
/// How often what is not known yet is asked for.
const AGAIN: Duration = Duration::from_millis(200);
/// The same after many attempts in vain.
const AGAIN_SLOWLY: Duration = Duration::from_secs(2);
/// How many attempts are many.
const MANY: u32 = 50;

impl Driver {
    /// Asks for what is not known yet, for ever: names of networks and of containers.
    pub(super) fn keep_named(&self) {
        let mut vain = 0;
        loop {
            let networks = self.bind_all();
            let containers = self.name_all();
            if let (Err(error), MANY) = (&containers, vain) {
                eprintln!("{error}");
            }
            let containers = containers.unwrap_or(false);
            let mut waiting = self.unnamed.lock();
            if networks && containers && !*waiting {
                self.name_soon.wait(&mut waiting);
                vain = 0;
            } else if !*waiting {
                let pause = if vain < MANY { AGAIN } else { AGAIN_SLOWLY };
                vain += 1;
                self.name_soon.wait_for(&mut waiting, pause);
            }
            *waiting = false;
        }
    }

    /// Has somebody look for names now.
    pub(super) fn look_for_names(&self) {
        *self.unnamed.lock() = true;
        self.name_soon.notify_one();
    }

    /// Whether every container has all its names.
    fn name_all(&self) -> Result<bool, Refusal> {
        let is_unnamed = |one: &Endpoint| !one.deleted && !one.named && one.sandbox.is_some();
        let unnamed: Vec<(String, Endpoint)> = {
            let state = self.state.lock();
            state
                .endpoints
                .iter()
                .filter(|(_, one)| is_unnamed(one))
                .map(|(id, one)| (id.clone(), one.clone()))
                .collect()
        };
        let mut all = Ok(true);
        for (id, endpoint) in unnamed {
            let named = self.name(&id, &endpoint);
            let failed = |error| Refusal::new(format!("the names of endpoint {id} are told later: {error}"));
            all = all.and_then(|all| Ok(all & named.map_err(failed)?));
        }
        all
    }

    /// Names one endpoint as far as dockerd tells; whether that is all.
    fn name(&self, id: &str, endpoint: &Endpoint) -> Result<bool, Refusal> {
        let unanswered = |error: io::Error| Refusal::new(format!("dockerd does not tell: {error}"));
        let network = self.dockerd.network(&endpoint.network, WITHIN).map_err(unanswered)?;
        let Some(known) = network.and_then(|mut network| network.endpoints.remove(id)) else { return Ok(false) };
        let mut wanted = vec![known.name];
        wanted.extend(known.container.iter().map(|container| container.chars().take(SHORT_ID).collect()));
        let names = labels(&wanted);
        if names.iter().any(|name| !endpoint.names.contains(name)) {
            self.tell(id, names)?;
        }
        // Before it has its container, dockerd answers for it; afterwards not until the container runs.
        let Some(container) = known.container else { return Ok(false) };
        let Some(aliases) = self.dockerd.aliases(&container, id, WITHIN).map_err(unanswered)? else { return Ok(false) };
        wanted.extend(aliases);
        self.tell(id, labels(&wanted))?;
        self.state.lock().endpoints.change(id, |endpoint| endpoint.named = true)?;
        Ok(true)
    }

    fn tell(&self, id: &str, names: Vec<String>) -> Result<(), Refusal> {
        self.daemon(Deadline::of_an_attempt())?.name(&endpoint_name(id), names.clone())?;
        self.state.lock().endpoints.change(id, |endpoint| endpoint.names = names)?;
        Ok(())
    }
}

impl State {
    /// Has endpoints named again whose container has another name now.
    pub(super) fn name_renamed(&mut self, network: &DockerNetwork) -> io::Result<()> {
        for (id, known) in &network.endpoints {
            let name = known.name.to_ascii_lowercase();
            let is_other = |one: &Endpoint| one.named && is_label(&name) && !one.names.contains(&name);
            if self.endpoints.get(id).is_some_and(is_other) {
                self.endpoints.change(id, |endpoint| endpoint.named = false)?;
            }
        }
        Ok(())
    }
}

/// What of these can be a name, once each, in order.
fn labels(wanted: &[String]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for name in wanted.iter().map(|name| name.to_ascii_lowercase()).filter(|name| is_label(name)) {
        if found.len() < MAX_NAMES && !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_once_each_and_bounded() {
        let list = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        assert_eq!(labels(&list(&["Shop_web_1", "web", "a.b", "", "WEB", "-x"])), list(&["shop_web_1", "web"]));
        let many: Vec<String> = (0..100).map(|number| format!("n{number}")).collect();
        assert_eq!(labels(&many), many[..MAX_NAMES]);
    }
}
