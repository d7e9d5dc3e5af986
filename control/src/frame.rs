//! Frames: a big-endian 32-bit length, then that many bytes of JSON, at most 1 MiB.
//!
//! Decoding is total: any bytes give a frame, the need for more bytes, or an error; memory is bound by what arrived.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{ApiError, Request, Response};

/// The version of the protocol this release speaks.
pub const PROTOCOL_VERSION: u32 = 1;
/// The largest frame body, in bytes.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
/// The size of the length in front of a body, in bytes.
pub const HEADER_BYTES: usize = 4;

/// A request as it is sent.
#[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
pub struct RequestFrame {
    /// The sender's [`PROTOCOL_VERSION`].
    pub version: u32,
    /// What is asked.
    pub request: Request,
}

/// An answer as it is sent.
#[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
pub struct ReplyFrame {
    /// The sender's [`PROTOCOL_VERSION`].
    pub version: u32,
    /// The outcome.
    pub reply: Reply,
}

/// The outcome of a request.
#[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It was done.
    Ok(Box<Response>),
    /// It was not done.
    Error(ApiError),
}

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length exceeds [`MAX_FRAME_BYTES`].
    #[error("frame of {0} bytes; the largest is 1 MiB")]
    TooLarge(usize),
    /// The other side speaks another version.
    #[error("protocol version {theirs}; this program speaks {PROTOCOL_VERSION}")]
    Version {
        /// The other side's version.
        theirs: u32,
    },
    /// The body is not JSON of the type expected.
    #[error("frame body: {0}")]
    Json(#[from] serde_json::Error),
    /// The stream failed or timed out.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The stream ended inside a frame.
    #[error("stream ended inside a frame")]
    Truncated,
}

/// Emits a value as a frame.
///
/// # Errors
/// When the body exceeds [`MAX_FRAME_BYTES`] or does not serialize.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut frame, value)?;
    let length = frame.len() - HEADER_BYTES;
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLarge(length));
    }
    let header = u32::try_from(length).map_err(|_| FrameError::TooLarge(length))?;
    frame[..HEADER_BYTES].copy_from_slice(&header.to_be_bytes());
    Ok(frame)
}

/// Parses the header of a frame into the length of its body.
///
/// # Errors
/// When the body would exceed [`MAX_FRAME_BYTES`].
pub fn body_len(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    let length = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if length > MAX_FRAME_BYTES { Err(FrameError::TooLarge(length)) } else { Ok(length) }
}

/// Parses a body: first its version, which must be ours, then the rest.
///
/// # Errors
/// When the version differs or the body is not a `T`.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version: theirs } = serde_json::from_slice(body)?;
    if theirs != PROTOCOL_VERSION {
        return Err(FrameError::Version { theirs });
    }
    Ok(serde_json::from_slice(body)?)
}

/// A body and the bytes behind its frame.
pub type Split<'a> = (&'a [u8], &'a [u8]);

/// Splits the first frame off a byte string: its body and the bytes behind it, or `None` when more bytes are needed.
///
/// # Errors
/// When the frame is larger than allowed.
pub fn split(bytes: &[u8]) -> Result<Option<Split<'_>>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    Ok(rest.split_at_checked(body_len(*header)?))
}

/// Writes one frame.
///
/// # Errors
/// As [`encode`], and when the stream fails.
pub fn write<T: Serialize>(stream: &mut impl Write, value: &T) -> Result<(), FrameError> {
    let frame = encode(value)?;
    stream.write_all(&frame)?;
    Ok(stream.flush()?)
}

/// Reads one frame body; `None` when the stream ended in front of it.
///
/// # Errors
/// When the frame is too large, the stream fails, or ends inside the frame.
pub fn read(stream: &mut impl Read) -> Result<Option<Vec<u8>>, FrameError> {
    let mut header = [0; HEADER_BYTES];
    let mut have = 0;
    while have < HEADER_BYTES {
        match stream.read(&mut header[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(FrameError::Truncated),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let length = body_len(header)?;
    let mut body = Vec::new();
    stream.take(length as u64).read_to_end(&mut body)?;
    if body.len() < length { Err(FrameError::Truncated) } else { Ok(Some(body)) }
}

/// Fuzz body: any bytes as a stream of frames, each decoded as request and as reply, and emitted again when valid.
pub fn fuzz(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((body, behind))) = split(rest) {
        if let Ok(request) = decode::<RequestFrame>(body) {
            let frame = encode(&request).expect("a request that was decoded has a bounded frame");
            let (body, _) = split(&frame).expect("own frames are valid").expect("own frames are whole");
            assert_eq!(decode::<RequestFrame>(body).expect("own frames decode"), request);
        }
        // A reply may hold numbers that JSON cannot give back exactly, so only the absence of a panic is asserted.
        drop(decode::<ReplyFrame>(body));
        rest = behind;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(request: Request) -> Vec<u8> {
        encode(&RequestFrame { version: PROTOCOL_VERSION, request }).expect("a frame")
    }

    #[test]
    fn frame_reads_back_and_stream_end_is_seen() {
        let mut stream = io::Cursor::new([frame(Request::Status), frame(Request::PeerList)].concat());
        for expected in [Request::Status, Request::PeerList] {
            let body = read(&mut stream).expect("a frame").expect("not the end");
            assert_eq!(decode::<RequestFrame>(&body).expect("a request").request, expected);
        }
        assert!(read(&mut stream).expect("a clean end").is_none());
    }

    #[test]
    fn truncated_frame_is_an_error_at_every_length() {
        let whole = frame(Request::Status);
        for length in 1..whole.len() {
            assert!(matches!(read(&mut &whole[..length]), Err(FrameError::Truncated)), "{length}");
            assert!(split(&whole[..length]).expect("no error").is_none());
        }
    }

    #[test]
    fn oversized_frame_is_refused_from_its_header_alone() {
        let header = u32::try_from(MAX_FRAME_BYTES + 1).expect("fits").to_be_bytes();
        assert!(matches!(read(&mut &header[..]), Err(FrameError::TooLarge(_))));
        assert!(matches!(split(&header), Err(FrameError::TooLarge(_))));
    }

    #[test]
    fn other_version_is_seen_before_the_body_is_understood() {
        let body = br#"{"version":2,"request":{"not":"known"}}"#;
        assert!(matches!(decode::<RequestFrame>(body), Err(FrameError::Version { theirs: 2 })));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            fuzz(&bytes);
        }

        #[test]
        fn mutated_frames_never_panic(at in 0usize..40, value in any::<u8>()) {
            let mut bytes = frame(Request::PeerShow { name: "h2".into() });
            let at = at % bytes.len();
            bytes[at] = value;
            fuzz(&bytes);
        }
    }
}
