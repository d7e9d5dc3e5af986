//! Changes made by the command line: the CLI layer is stored first, then put in force whole, and taken back when that is
//! refused.

use std::time::Duration;

use overlay_config::{Config, ForeignPeer, Layer};
use overlay_control::api::{ConfigText, EncapsulationSetting, Response};
use overlay_control::{ApiError, Code};
use overlay_wire::policy::PolicySet;
use tokio::sync::oneshot;

use super::{Api, done, ended, not_found};
use crate::core::Change;

/// How long a change waits for the kernel's rules; less than a request may take.
const PLUMBING_WAIT: Duration = Duration::from_secs(3);

fn config_error(problems: &overlay_config::Problems) -> ApiError {
    ApiError::new(Code::Config, "the configuration has problems", problems.to_string(), "correct the lines named")
}

fn io_error(error: &std::io::Error) -> ApiError {
    ApiError::new(
        Code::Io,
        "the change cannot be stored",
        error.to_string(),
        "make room, or make the state directory writable; nothing was changed",
    )
}

impl Api {
    /// Applies `edit` to the CLI layer; whether anything changed.
    pub(crate) async fn change_layer(
        &self,
        edit: impl FnOnce(&mut Layer, &Config) -> Result<bool, ApiError>,
    ) -> Result<bool, ApiError> {
        let _one_at_a_time = self.core.layer_lock.lock().await;
        let current = self.core.config.load_full();
        let path = current.paths.cli_layer();
        let old = Layer::load(&path).map_err(|problems| config_error(&problems))?;
        let mut new = old.clone();
        if !edit(&mut new, &current)? {
            return Ok(false);
        }
        new.store(&path).map_err(|error| io_error(&error))?;
        // Over the text in force: edits of the file that nobody reloaded stay out.
        let file = self.core.file_text.lock().clone();
        let (file_name, layer_name) = (self.core.config_path.display().to_string(), path.display().to_string());
        let outcome =
            match Config::parse_all(&file, &file_name, self.core.layer.as_ref(), Some((&new.to_toml(), &layer_name))) {
                Ok(config) => {
                    let (done, outcome) = oneshot::channel();
                    let sent = self.core.changes.send(Change::Apply(Box::new(config), done)).await;
                    match sent {
                        Ok(()) => outcome.await.unwrap_or_else(|_| Err(ended("director"))),
                        Err(_) => Err(ended("director")),
                    }
                }
                Err(problems) => Err(ApiError::new(
                    Code::Config,
                    "the change was refused and nothing was changed",
                    problems
                        .0
                        .iter()
                        .map(|problem| format!("{}: {}", problem.key, problem.what))
                        .collect::<Vec<_>>()
                        .join("; "),
                    problems.0.first().map(|problem| format!("give {}", problem.expected)).unwrap_or_default(),
                )),
            };
        if let Err(error) = outcome {
            old.store(&path).map_err(|error| io_error(&error))?;
            return Err(error);
        }
        Ok(true)
    }

    pub(super) async fn peer_add(&self, peer: ForeignPeer) -> Result<Response, ApiError> {
        let name = peer.name.clone();
        let changed = self
            .change_layer(|layer, config| {
                if layer.peers.contains(&peer) {
                    return Ok(false);
                }
                if layer.peers.iter().chain(&config.peers).any(|other| other.name == peer.name) {
                    return Err(ApiError::new(
                        Code::Conflict,
                        format!("there is a peer `{}` already", peer.name),
                        "names are unique",
                        "remove the other first, or choose another name",
                    ));
                }
                layer.peers.push(peer);
                Ok(true)
            })
            .await?;
        Ok(done(changed, vec![format!("peer {name} is added")]))
    }

    pub(super) async fn peer_remove(&self, name: &str) -> Result<Response, ApiError> {
        let changed = self
            .change_layer(|layer, config| {
                if let Some(place) = layer.peers.iter().position(|peer| peer.name == name) {
                    layer.peers.remove(place);
                    return Ok(true);
                }
                let in_file = config.peers.iter().any(|peer| peer.name == name)
                    || config.members.iter().any(|member| member.name == name);
                if in_file {
                    return Err(ApiError::new(
                        Code::ReadOnly,
                        format!("peer `{name}` is set by the file"),
                        "the command line changes only what it set",
                        "remove it from the file and run `overlayctl config reload`",
                    ));
                }
                Err(not_found("peer", name, "overlayctl peer list"))
            })
            .await?;
        Ok(done(changed, vec![format!("peer {name} is removed")]))
    }

    pub(super) async fn peer_set(
        &self,
        name: Option<String>,
        encapsulation: EncapsulationSetting,
    ) -> Result<Response, ApiError> {
        let wanted = match encapsulation {
            EncapsulationSetting::Config => None,
            EncapsulationSetting::Use(kind) => Some(kind),
        };
        if let (Some(kind), Some(tunnel)) =
            (wanted.filter(|kind| !kind.is_encrypted()), self.core.kernel_tunnels.keys().next())
        {
            return Err(ApiError::new(
                Code::KernelTunnel,
                format!("{kind} is refused while the kernel tunnel {tunnel} is up"),
                "it would receive such packets beside overlayd and let them past the filter",
                format!("ip link set {tunnel} down, restart overlayd, and set it again"),
            ));
        }
        let subject = name.clone().unwrap_or_else(|| "the default".to_owned());
        let changed = self
            .change_layer(|layer, config| {
                let old = match &name {
                    Some(name) => {
                        let is_member = config.members.iter().any(|member| &member.name == name)
                            || self.core.view.load().members.iter().any(|member| &member.name == name);
                        // What was set with a member that is gone can still be taken back.
                        if !is_member && (wanted.is_some() || !config.certified.contains_key(name)) {
                            return Err(not_found("member", name, "overlayctl peer list"));
                        }
                        match wanted {
                            Some(kind) => layer.member_encapsulation.insert(name.clone(), kind),
                            None => layer.member_encapsulation.remove(name),
                        }
                    }
                    None => std::mem::replace(&mut layer.encapsulation, wanted),
                };
                Ok(old != wanted)
            })
            .await?;
        let what = wanted.map_or("as the file says".to_owned(), |kind| kind.to_string());
        Ok(done(changed, vec![format!("encapsulation of {subject}: {what}; the stronger of both ends is used")]))
    }

    pub(super) async fn policy_apply(&self, policy: Option<PolicySet>) -> Result<Response, ApiError> {
        let changed = self
            .change_layer(|layer, _| {
                let changed = layer.policy != policy;
                layer.policy = policy;
                Ok(changed)
            })
            .await?;
        let mut notes: Vec<String> =
            self.core.shared.snapshot.load().tables.policy.warnings().iter().map(ToString::to_string).collect();
        if let Some(cluster) = self.core.cluster_policy.load().tracker.in_force().filter(|rules| rules.text.is_some()) {
            let note =
                format!("it is kept and not in force: revision {} of the cluster's policy counts", cluster.revision);
            notes = vec![note];
        }
        notes.extend(self.plumbing_follows().await);
        Ok(done(changed, notes))
    }

    /// Waits until the kernel has the policy between containers and this host too; what stands in the way, if anything.
    async fn plumbing_follows(&self) -> Option<String> {
        match tokio::time::timeout(PLUMBING_WAIT, self.core.plumbing.settled()).await {
            Ok(Ok(())) => {
                let problems = self.core.plumbing.problems();
                problems.into_iter().find(|problem| problem.code == "PLUMBING").map(|problem| problem.what)
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("the kernel is still loading the rules between containers and this host".to_owned()),
        }
    }

    /// The configuration as file, membership and command line make it now.
    fn load(&self) -> Result<Config, overlay_config::Problems> {
        let (path, layer) = (&self.core.config_path, self.core.layer.as_ref());
        let text = if layer.is_some() { Config::text_or_empty(path) } else { Config::text(path) };
        Config::load_text(&text?, path, layer)
    }

    pub(super) fn config_check(&self, text: Option<ConfigText>) -> Result<Response, ApiError> {
        let outcome = match text {
            Some(text) => Config::parse(&text.text, &text.name),
            None => self.load(),
        };
        outcome.map(|_| done(false, Vec::new())).map_err(|problems| config_error(&problems))
    }

    pub(super) fn config_diff(&self) -> Result<Response, ApiError> {
        let next = self.load().map_err(|problems| config_error(&problems))?;
        Ok(Response::Changes(overlay_config::diff(&self.core.config.load(), &next)))
    }

    pub(super) async fn config_reload(&self) -> Result<Response, ApiError> {
        let (done, outcome) = oneshot::channel();
        self.core.changes.send(Change::Reload(done)).await.map_err(|_| ended("director"))?;
        let changes = outcome.await.map_err(|_| ended("director"))??;
        self.plumbing_follows().await;
        Ok(Response::Changes(changes))
    }
}
