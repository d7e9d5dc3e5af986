//! The load generator: TCP streams between namespaces, confirmed by the receiver.

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use crate::netns;

/// Bytes per write and read.
const CHUNK: usize = 256 * 1024;
/// A stream on which nothing moves for so long has failed.
const STALL: Duration = Duration::from_secs(10);

/// How much to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// A number of bytes.
    Bytes(u64),
    /// As many bytes as pass in this time.
    Time(Duration),
}

/// Whether the receiver compares every byte with what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Only counted, for measurements.
    Counted,
    /// Compared with the sender's pattern.
    Verified,
}

/// A finished stream.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Transfer {
    /// Bytes the receiver confirmed.
    pub bytes: u64,
    /// From the first byte to the confirmation.
    pub seconds: f64,
}

impl Transfer {
    /// Payload bits per second.
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.seconds
    }
}

/// A server that confirms streams until it is dropped.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Listens in a namespace; port 0 picks a free one.
    pub fn start(namespace: &str, address: SocketAddr) -> Result<Server> {
        let listener = netns::within(namespace, || listen(address))?;
        let address = listener.local_addr()?;
        let accepting = listener.try_clone()?;
        let thread = Some(std::thread::spawn(move || {
            let _ = serve(&accepting);
        }));
        Ok(Server { listener, address, thread })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SAFETY: shutdown of an open listening socket; it wakes the accepting thread.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Listens on an address with the congestion control of the measurements.
pub fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = socket(address)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(address)).with_context(|| format!("listening on {address}"))?;
    socket.listen(16)?;
    Ok(socket.into())
}

/// Confirms streams, each on a thread of its own, until the listener is shut down.
pub fn serve(listener: &TcpListener) -> Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        std::thread::spawn(move || {
            // The sender sees a failure as a missing confirmation.
            let _ = receive(stream);
        });
    }
}

/// Sends a stream to a server from a namespace and waits for its confirmation.
pub fn send(namespace: &str, to: SocketAddr, amount: Amount, content: Content) -> Result<Transfer> {
    let stream = netns::within(namespace, || connect(to, Duration::from_secs(5)))?;
    transmit(stream, amount, content).with_context(|| format!("sending a stream from {namespace} to {to}"))
}

/// Opens a connection from the namespace of the calling thread.
pub fn connect(to: SocketAddr, limit: Duration) -> Result<TcpStream> {
    let socket = socket(to)?;
    socket.connect_timeout(&SockAddr::from(to), limit).with_context(|| format!("connecting to {to}"))?;
    Ok(socket.into())
}

/// Sends a stream over an open connection and waits for the confirmation.
pub fn transmit(mut stream: TcpStream, amount: Amount, content: Content) -> Result<Transfer> {
    stream.set_write_timeout(Some(STALL))?;
    stream.set_read_timeout(Some(STALL))?;
    let chunk = pattern();
    let start = Instant::now();
    stream.write_all(&[u8::from(content == Content::Verified)])?;
    let mut sent: u64 = 0;
    loop {
        let length = match amount {
            Amount::Bytes(bytes) => usize::try_from(bytes - sent).unwrap_or(CHUNK).min(CHUNK),
            Amount::Time(time) if start.elapsed() >= time => 0,
            Amount::Time(_) => CHUNK,
        };
        if length == 0 {
            break;
        }
        stream.write_all(&chunk[..length]).context("the stream stalled")?;
        sent += length as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut confirmed = [0; 8];
    stream.read_exact(&mut confirmed).context("the receiver did not confirm the stream")?;
    let seconds = start.elapsed().as_secs_f64();
    let bytes = u64::from_be_bytes(confirmed);
    if bytes != sent {
        bail!("{sent} bytes were sent and {bytes} arrived whole");
    }
    Ok(Transfer { bytes, seconds })
}

fn receive(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(STALL))?;
    let mut mode = [0];
    stream.read_exact(&mut mode)?;
    let expected = (mode[0] == 1).then(pattern);
    let mut buffer = vec![0; CHUNK];
    let mut received: usize = 0;
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        if let Some(expected) = &expected {
            let at = received % CHUNK;
            let first = length.min(CHUNK - at);
            let same =
                buffer[..first] == expected[at..at + first] && buffer[first..length] == expected[..length - first];
            if !same {
                bail!("byte {received} or one shortly after it is wrong");
            }
        }
        received += length;
    }
    stream.write_all(&(received as u64).to_be_bytes())?;
    Ok(())
}

/// Bytes without a short period, the same at both ends.
fn pattern() -> Vec<u8> {
    let mut state: u32 = 0x9e37_79b9;
    (0..CHUNK)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[1]
        })
        .collect()
}

fn socket(address: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    let cubic = b"cubic";
    // SAFETY: the option reads the name, which lives across the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_CONGESTION,
            cubic.as_ptr().cast(),
            cubic.len() as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).context("choosing CUBIC");
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (TcpStream, std::thread::JoinHandle<Result<()>>) {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let receiver = std::thread::spawn(move || receive(listener.accept()?.0));
        (connect(address, Duration::from_secs(1)).unwrap(), receiver)
    }

    #[test]
    fn verified_stream_is_confirmed_whole() {
        let (stream, receiver) = pair();
        let bytes = 3 * CHUNK as u64 + 17;
        let transfer = transmit(stream, Amount::Bytes(bytes), Content::Verified).unwrap();
        assert_eq!(transfer.bytes, bytes);
        receiver.join().unwrap().unwrap();
    }

    #[test]
    fn altered_byte_is_noticed() {
        let (mut stream, receiver) = pair();
        let mut bytes = pattern();
        bytes[1000] ^= 1;
        stream.write_all(&[1]).unwrap();
        stream.write_all(&bytes).unwrap();
        // The receiver may have noticed and closed already.
        let _ = stream.shutdown(Shutdown::Write);
        assert!(receiver.join().unwrap().is_err());
    }
}
