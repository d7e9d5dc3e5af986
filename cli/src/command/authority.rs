//! `overlayctl cert`, `node` and `ca`.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use overlay_control::api::{ApiError, CertificateInfo, MembershipRequest, MembershipResponse, Response, SecretText};
use overlay_control::codes::{Code, exit};

use super::Context;
use super::passphrase::{self, Use};
use crate::args::{Ca, Cert, Node};
use crate::output::{Failure, Outcome, Output, unexpected};
use crate::table::Table;
use crate::units;

/// The largest export read, in bytes.
const MAX_EXPORT_BYTES: u64 = 1 << 20;

pub(super) fn cert(context: &mut Context<'_>, verb: Cert) -> Outcome {
    match verb {
        Cert::List => {
            let certificates = certificates(context)?;
            if context.output.json {
                context.output.object("cert-list", &serde_json::json!({ "certificates": certificates }))?;
            } else {
                context.output.table(&table(&certificates), "no certificates: this cluster is made by its files")?;
            }
            Ok(exit::OK)
        }
        Cert::Show { member } => {
            let certificates = certificates(context)?;
            let is_wanted = |certificate: &&CertificateInfo| match &member {
                Some(member) => certificate.name == *member || certificate.id.to_string() == *member,
                None => certificate.own,
            };
            let Some(certificate) = certificates.iter().find(is_wanted) else {
                let name = member.unwrap_or_else(|| "this host".to_owned());
                return Err(ApiError::new(
                    Code::NotFound,
                    format!("there is no certificate of {name}"),
                    "no certificate of this name or host id is known here",
                    "`overlayctl cert list` shows all",
                )
                .into());
            };
            if context.output.json {
                context.output.object("certificate", certificate)?;
            } else {
                show(context.output, certificate)?;
            }
            Ok(exit::OK)
        }
        Cert::Renew => context.change_membership(MembershipRequest::CertRenew, "the certificate is renewed"),
        Cert::Revoke { member } => {
            let done = format!("{member} is cut off for good");
            context.change_membership(MembershipRequest::CertRevoke { member }, &done)
        }
    }
}

pub(super) fn node(context: &mut Context<'_>, verb: Node) -> Outcome {
    let Node::Forget { member } = verb;
    let done = format!("{member} is cut off for good; its subnets are free once its certificate has ended");
    context.change_membership(MembershipRequest::NodeForget { member }, &done)
}

pub(super) fn ca(context: &mut Context<'_>, verb: Ca) -> Outcome {
    match verb {
        Ca::Export { file, passphrase_file } => {
            // Before anything is asked: an export takes its half of the pool for good.
            let mut out = create(&file)?;
            let exported = passphrase::read(passphrase_file.as_deref(), Use::New)
                .and_then(|passphrase| context.membership(MembershipRequest::CaExport { passphrase }));
            let export = match exported {
                Ok(Response::Membership(MembershipResponse::Export(export))) => export,
                Ok(other) => return Err(undone(&file, unexpected(&other))),
                Err(failure) => return Err(undone(&file, failure)),
            };
            let written = out.write_all(export.reveal().as_bytes()).and_then(|()| out.write_all(b"\n"));
            written.and_then(|()| out.sync_all()).map_err(|error| cannot_write(&file, &error))?;
            if context.output.json {
                context.output.object("ca-export", &serde_json::json!({ "file": file }))?;
            } else {
                context.output.note(&format!("the authority's key is in {}", file.display()))?;
                context.output.note("next: keep it away from this host, and its passphrase elsewhere")?;
            }
            Ok(exit::OK)
        }
        Ca::Import { file, passphrase_file } => {
            let mut export = String::new();
            let read =
                std::fs::File::open(&file).and_then(|opened| opened.take(MAX_EXPORT_BYTES).read_to_string(&mut export));
            read.map_err(|error| {
                let what = format!("cannot read {}", file.display());
                ApiError::new(Code::Io, what, error.to_string(), "give the file that `overlayctl ca export` wrote")
            })?;
            let passphrase = passphrase::read(passphrase_file.as_deref(), Use::Known)?;
            let export = SecretText::new(export.trim().to_owned());
            let request = MembershipRequest::CaImport { export, passphrase };
            context.change_membership(request, "this host is an issuer now")
        }
        Ca::Rotate { finish } => {
            let done = if finish { "the old key is retired" } else { "the authority has a new key" };
            context.change_membership(MembershipRequest::CaRotate { finish }, done)
        }
    }
}

fn create(path: &Path) -> Result<std::fs::File, Failure> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| cannot_write(path, &error).into())
}

/// Takes back the empty file of an export that did not come.
fn undone(path: &Path, failure: Failure) -> Failure {
    // What cannot be removed is an empty file, and the failure says more.
    let _ = std::fs::remove_file(path);
    failure
}

fn cannot_write(path: &Path, error: &std::io::Error) -> ApiError {
    let next = "choose a path that does not exist yet, in a directory you may write to";
    ApiError::new(Code::Io, format!("cannot write {}", path.display()), error.to_string(), next)
}

fn certificates(context: &mut Context<'_>) -> Result<Vec<CertificateInfo>, Failure> {
    match context.membership(MembershipRequest::CertList)? {
        Response::Membership(MembershipResponse::Certificates(certificates)) => Ok(certificates),
        other => Err(unexpected(&other)),
    }
}

fn table(certificates: &[CertificateInfo]) -> Table {
    let mut table = Table::new(&["HOST", "SERIAL", "STATE", "EXPIRES", "GRANTS", "RIGHTS", "LABELS"]);
    for certificate in certificates {
        let own = if certificate.own { " (this host)" } else { "" };
        table.row(vec![
            format!("{}{own}", certificate.name),
            certificate.serial.clone(),
            certificate.state.clone(),
            certificate.expires.to_string(),
            units::list(&certificate.grants),
            units::list(&certificate.rights),
            units::list(&labels(certificate)),
        ]);
    }
    table
}

fn show(output: &mut Output, certificate: &CertificateInfo) -> Result<(), Failure> {
    let own = if certificate.own { ", this host" } else { "" };
    output.line(&format!("{}: {}{own}", certificate.name, certificate.state))?;
    for (name, value) in [
        ("host id", certificate.id.to_string()),
        ("identity", certificate.identity.to_string()),
        ("serial", certificate.serial.clone()),
        ("authority", certificate.ca.clone()),
        ("from", certificate.from.to_string()),
        ("expires", certificate.expires.to_string()),
        ("grants", units::list(&certificate.grants)),
        ("rights", units::list(&certificate.rights)),
        ("labels", units::list(&labels(certificate))),
    ] {
        output.line(&format!("  {name:<10} {value}"))?;
    }
    Ok(())
}

fn labels(certificate: &CertificateInfo) -> Vec<String> {
    certificate.labels.iter().map(|(key, value)| format!("{key}={value}")).collect()
}
