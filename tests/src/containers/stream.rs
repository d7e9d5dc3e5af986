//! Streams between containers whose rate at the receiver is measured while they run: TCP as fast as it goes, UDP as offered.

use anyhow::{Context as _, Result, anyhow, ensure};
use overlay_netns_harness::{Container, load, netns};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of IP and UDP headers.
const UDP_HEADERS: usize = 28;
/// Inner bytes of each datagram sent.
const PACKET: usize = 1400;
/// Datagrams handed to the kernel at once, at most.
const SEGMENTS: usize = 32;
/// How often a sender of datagrams wakes up.
const TICK: Duration = Duration::from_micros(500);

/// A time in which a rate settles, and one in which it is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spans {
    pub(super) settle: Duration,
    pub(super) measure: Duration,
}

/// Bits of payload per second of one TCP stream with CUBIC.
pub(super) fn tcp(from: &Container, to: &Container, spans: Spans) -> Result<f64> {
    let listener = netns::within(to.view.namespace(), || load::listen(SocketAddr::new(to.v4.into(), 0)))?;
    let address = listener.local_addr()?;
    let stream = netns::within(from.view.namespace(), || load::connect(address, Duration::from_secs(10)))?;
    let (over, received) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| take(&listener, &received, &over));
        let over = &over;
        let sender = scope.spawn(move || {
            let (mut stream, chunk) = (stream, vec![0x5a; 128 * 1024]);
            stream.set_write_timeout(Some(Duration::from_millis(200)))?;
            while !over.load(Ordering::Relaxed) {
                match stream.write(&chunk) {
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(_) if over.load(Ordering::Relaxed) => break,
                    Err(error) => return Err(error),
                }
            }
            // What waits to be sent is of no interest.
            reset(&stream)
        });
        let rate = measure(&received, spans);
        over.store(true, Ordering::Relaxed);
        sender.join().map_err(|_| anyhow!("the sender panicked"))?.context("sending")?;
        let _ = receiver.join();
        Ok(rate * 8.0)
    })
}

fn take(listener: &TcpListener, received: &AtomicU64, over: &AtomicBool) -> std::io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    // What ends the connection may be lost like anything else.
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut buffer = vec![0; 256 * 1024];
    while !over.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                received.fetch_add(length as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Ends a connection at once.
fn reset(stream: &std::net::TcpStream) -> std::io::Result<()> {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// Counts per second, after a time to settle.
fn measure(count: &AtomicU64, spans: Spans) -> f64 {
    rest(spans.settle);
    let (began, before) = (Instant::now(), count.load(Ordering::Relaxed));
    rest(spans.measure);
    (count.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64()
}

/// Lets time pass: a measurement lasts as long as it is told.
pub(super) fn rest(time: Duration) {
    // SAFETY: no descriptors are passed.
    unsafe { libc::poll(std::ptr::null_mut(), 0, i32::try_from(time.as_millis()).unwrap_or(i32::MAX)) };
}

/// Bits of inner packets per second that arrive of an offered rate.
pub(super) fn udp(from: &Container, to: &Container, offered: f64, spans: Spans) -> Result<f64> {
    let server = netns::within(to.view.namespace(), || Ok(UdpSocket::bind((to.v4, 0))?))?;
    server.set_read_timeout(Some(Duration::from_millis(100)))?;
    let reference = socket2::SockRef::from(&server);
    reference.set_recv_buffer_size(4 << 20)?;
    // Joined by the kernel where it can, so that the receiver is not what is measured.
    set(&server, libc::UDP_GRO, 1)?;
    let client = netns::within(from.view.namespace(), || Ok(UdpSocket::bind((from.v4, 0))?))?;
    client.connect((to.v4, server.local_addr()?.port()))?;
    let payload = PACKET - UDP_HEADERS;
    set(&client, libc::UDP_SEGMENT, payload as libc::c_int)?;
    let (over, received) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (begun, mut sent) = (Instant::now(), 0_u64);
            let bytes = vec![7; payload * SEGMENTS];
            while !over.load(Ordering::Relaxed) {
                // What is due by now, so that a late wake-up is made good.
                let due = (begun.elapsed().as_secs_f64() * offered / 8.0 / PACKET as f64) as u64;
                while sent < due {
                    let count = (due - sent).min(SEGMENTS as u64);
                    let _ = client.send(&bytes[..payload * count as usize]);
                    sent += count;
                }
                // SAFETY: the time is valid and nothing is written.
                unsafe {
                    let tick = libc::timespec { tv_sec: 0, tv_nsec: TICK.as_nanos() as libc::c_long };
                    libc::nanosleep(&tick, std::ptr::null_mut());
                }
            }
        });
        scope.spawn(|| {
            let mut buffer = vec![0; 65_536];
            while !over.load(Ordering::Relaxed) {
                if let Ok(length) = server.recv(&mut buffer) {
                    received.fetch_add(length as u64, Ordering::Relaxed);
                }
            }
        });
        let rate = measure(&received, spans);
        over.store(true, Ordering::Relaxed);
        ensure!(rate > 0.0, "nothing arrived");
        Ok(rate * 8.0 * PACKET as f64 / payload as f64)
    })
}

fn set(socket: &UdpSocket, option: libc::c_int, value: libc::c_int) -> Result<()> {
    // SAFETY: the option reads one int, which lives across the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    ensure!(result == 0, "setting an option of a UDP socket: {}", std::io::Error::last_os_error());
    Ok(())
}
