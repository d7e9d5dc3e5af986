//! Traffic the tests make and watch: conversations, captures, raw datagrams.

use anyhow::{Context as _, Result, ensure};
use overlay_netns_harness::{load, netns};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A server that sends back what it gets, over TCP.
#[derive(Debug)]
pub struct Echo {
    listener: TcpListener,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Listens in a namespace.
    pub fn start(namespace: &str, address: SocketAddr) -> Result<Echo> {
        let listener = netns::within(namespace, || load::listen(address))?;
        let address = listener.local_addr()?;
        let accepting = listener.try_clone()?;
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                std::thread::spawn(move || echo(stream));
            }
        });
        Ok(Echo { listener, address, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // SAFETY: shutdown of an open listening socket; it wakes the accepting thread.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
}

/// An open connection to an [`Echo`].
#[derive(Debug)]
pub struct Conversation {
    stream: TcpStream,
    said: u64,
}

impl Conversation {
    /// Connects from a namespace.
    pub fn open(namespace: &str, to: SocketAddr, limit: Duration) -> Result<Conversation> {
        let stream = netns::within(namespace, || load::connect(to, limit))?;
        stream.set_nodelay(true)?;
        Ok(Conversation { stream, said: 0 })
    }

    /// Says something new and waits for the echo.
    pub fn exchange(&mut self, limit: Duration) -> Result<()> {
        self.said += 1;
        let words = self.said.to_be_bytes();
        self.stream.set_read_timeout(Some(limit))?;
        self.stream.write_all(&words)?;
        let mut heard = [0; 8];
        self.stream.read_exact(&mut heard).with_context(|| format!("no echo within {limit:?}"))?;
        ensure!(heard == words, "the echo is wrong");
        Ok(())
    }
}

/// A bound UDP socket in a namespace.
pub fn udp_socket(namespace: &str, address: SocketAddr) -> Result<UdpSocket> {
    netns::within(namespace, || UdpSocket::bind(address).with_context(|| format!("binding {address}")))
}

/// How long frames that arrive without a pause are still taken when a capture ends.
const LAST_FRAMES: Duration = Duration::from_secs(5);

/// Counts the frames on all devices of a namespace that contain some bytes.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Found>>,
}

/// What a capture saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// Frames seen.
    pub frames: u64,
    /// Frames that contain the bytes.
    pub matches: u64,
}

impl Capture {
    /// Starts to look for the bytes in one direction or both, by the filter given over the frame.
    pub fn start(namespace: &str, wanted: impl Fn(&[u8]) -> bool + Send + 'static) -> Result<Capture> {
        Capture::open(namespace, None, wanted)
    }

    /// The same on one device.
    pub fn start_on(namespace: &str, device: &str, wanted: impl Fn(&[u8]) -> bool + Send + 'static) -> Result<Capture> {
        Capture::open(namespace, Some(device), wanted)
    }

    fn open(namespace: &str, device: Option<&str>, wanted: impl Fn(&[u8]) -> bool + Send + 'static) -> Result<Capture> {
        let socket = netns::within(namespace, || {
            let every_protocol = libc::ETH_P_ALL.cast_unsigned() as u16;
            let protocol = Protocol::from(i32::from(every_protocol.to_be()));
            // Bound to a device, it hears nothing before.
            let first = if device.is_some() { Protocol::from(0) } else { protocol };
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(first)).context("opening a capture")?;
            if let Some(device) = device {
                bind_device(&socket, device, every_protocol)?;
            }
            socket.set_recv_buffer_size(8 << 20)?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok(socket)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || watch(&socket, &stopped, wanted));
        Ok(Capture { stop, thread: Some(thread) })
    }

    /// A filter for frames that contain these bytes.
    pub fn containing(bytes: &[u8]) -> impl Fn(&[u8]) -> bool + Send + 'static {
        let bytes = bytes.to_vec();
        move |frame| frame.windows(bytes.len()).any(|window| window == bytes)
    }

    /// Ends the capture when no frame arrived for a moment, and says what was found.
    pub fn finish(mut self) -> Found {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("a capture is finished once");
        thread.join().expect("the capture thread does not panic")
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Binds a packet socket to a device of the calling thread's namespace, for one protocol or, with 0, to send alone.
pub(crate) fn bind_device(socket: &Socket, device: &str, protocol: u16) -> Result<()> {
    let name = std::ffi::CString::new(device)?;
    // SAFETY: the name is NUL-terminated, and the address is plain data that outlives the call.
    let result = unsafe {
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = libc::if_nametoindex(name.as_ptr()).cast_signed();
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length)
    };
    ensure!(result == 0, "binding to {device}: {}", std::io::Error::last_os_error());
    Ok(())
}

fn watch(socket: &Socket, stop: &AtomicBool, wanted: impl Fn(&[u8]) -> bool) -> Found {
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); 65536];
    let mut found = Found::default();
    let mut stopped = None;
    loop {
        if stop.load(Ordering::Relaxed) && stopped.get_or_insert_with(Instant::now).elapsed() > LAST_FRAMES {
            return found;
        }
        match socket.recv(&mut buffer) {
            Ok(length) => {
                // SAFETY: the kernel has filled `length` bytes.
                let frame = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
                found.frames += 1;
                found.matches += u64::from(wanted(frame));
            }
            Err(_) if stop.load(Ordering::Relaxed) => return found,
            Err(_) => {}
        }
    }
}

/// A raw socket that sends whole IP packets from a namespace.
pub fn raw_sender(namespace: &str) -> Result<impl Fn(&[u8], SocketAddr) -> std::io::Result<usize> + use<>> {
    let socket = netns::within(namespace, || {
        Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).context("opening a raw socket")
    })?;
    Ok(move |packet: &[u8], to: SocketAddr| socket.send_to(packet, &SockAddr::from(to)))
}

/// A raw socket that sends whole IPv6 packets from a namespace.
pub fn raw_sender_v6(namespace: &str) -> Result<impl Fn(&[u8], IpAddr) -> std::io::Result<usize>> {
    let socket = netns::within(namespace, || {
        let raw = Protocol::from(libc::IPPROTO_RAW);
        Socket::new(Domain::IPV6, Type::RAW, Some(raw)).context("opening a raw socket")
    })?;
    Ok(move |packet: &[u8], to: IpAddr| socket.send_to(packet, &SockAddr::from(SocketAddr::new(to, 0))))
}
