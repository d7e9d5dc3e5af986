//! `overlayctl capture`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use overlay_control::api::{ApiError, CaptureRequest, CaptureVerdict, CapturedPacket, Request, Response};
use overlay_control::codes::{Code, exit};
use overlay_control::{Client, ControlError};

use super::Context;
use crate::args::{Capture, CaptureVerdictWord};
use crate::output::{Failure, Outcome, unexpected};
use crate::pcapng::{Packet, Writer};

/// How often it is looked whether the time is over.
const LOOK: Duration = Duration::from_millis(100);

pub(super) fn run(context: &mut Context<'_>, words: &Capture) -> Outcome {
    let request = CaptureRequest {
        filter: words.filter.join(" "),
        peer: words.peer.clone(),
        container: words.container.clone(),
        verdict: words.verdict.map(|verdict| match verdict {
            CaptureVerdictWord::Allow => CaptureVerdict::Allow,
            CaptureVerdictWord::Deny => CaptureVerdict::Deny,
        }),
        back_ms: words.back.map(|back| back.as_millis() as u64),
        snaplen: words.snaplen,
    };
    let mut client = begin(context, request)?;
    let is_stdout = words.write == Path::new("-");
    let out: Box<dyn Write> = if is_stdout {
        Box::new(io::stdout())
    } else {
        Box::new(File::create(&words.write).map_err(|error| {
            let what = format!("cannot write {}", words.write.display());
            ApiError::new(Code::Io, what, error.to_string(), "check the path and the space on the disk")
        })?)
    };
    let mut writer = Writer::new(BufWriter::new(out), "overlay", words.snaplen)?;
    // A reader at the other end of a pipe wants to see the head at once.
    writer.flush()?;
    let end = words.duration.map(|duration| Instant::now() + duration);
    let (mut written, mut lost) = (0u64, 0);
    let done = |written: u64| {
        words.count.is_some_and(|count| written >= count) || end.is_some_and(|end| Instant::now() >= end)
    };
    let mut closed = None;
    while !done(written) {
        let wait = if end.is_some() { Some(LOOK) } else { None };
        let captured = match client.next_captured(wait) {
            Ok(Some(captured)) => captured,
            Ok(None) => continue,
            // What came so far is a whole file.
            Err(error) => {
                closed = Some(error);
                break;
            }
        };
        lost = captured.lost;
        for packet in &captured.packets {
            if words.count.is_some_and(|count| written >= count) {
                break;
            }
            write(&mut writer, packet)?;
            written += 1;
        }
        writer.flush()?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
    writer.finish(now, lost)?;
    if let Some(error) = closed.filter(|error| !matches!(error, ControlError::Closed)) {
        return Err(error.into());
    }
    if !is_stdout {
        let place = words.write.display();
        if context.output.json {
            let done = serde_json::json!({ "file": place.to_string(), "packets": written, "lost": lost });
            context.output.object("capture", &done)?;
        } else {
            context.output.note(&format!("{written} packets in {place}, {lost} lost"))?;
        }
    }
    Ok(exit::OK)
}

/// Begins a capture on a connection of its own.
pub(super) fn begin(context: &mut Context<'_>, request: CaptureRequest) -> Result<Client, Failure> {
    let mut client = context.another()?;
    match client.call(Request::Capture(request))? {
        Response::Done { .. } => Ok(client),
        other => Err(unexpected(&other)),
    }
}

fn write(writer: &mut Writer<impl Write>, packet: &CapturedPacket) -> Result<(), Failure> {
    let bytes = STANDARD.decode(&packet.data).map_err(|error| {
        let what = "the daemon sent a packet that cannot be read";
        ApiError::new(Code::BadFrame, what, error.to_string(), "use the overlayctl that came with the daemon")
    })?;
    let comment = words(packet);
    let CapturedPacket { at_us, outbound, length, .. } = *packet;
    Ok(writer.packet(&Packet { at_us, outbound, length, bytes: &bytes, comment: &comment })?)
}

/// What is known of a packet, as one line.
pub(super) fn words(packet: &CapturedPacket) -> String {
    let mut words = packet.verdict.clone();
    if let Some(rule) = &packet.rule {
        words.push_str(&format!("; {rule}"));
    }
    if let Some(peer) = &packet.peer {
        words.push_str(&format!("; {} {peer}", if packet.outbound { "to peer" } else { "from peer" }));
    }
    words
}
