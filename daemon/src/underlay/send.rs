//! Sending many datagrams with one system call (`sendmmsg`), runs of equal size joined by `UDP_SEGMENT`.
//!
//! Sockets rest with DF on. For datagrams that may be fragmented it is taken off around their own call, in their place in
//! the order; whoever sends none of them pays nothing. A second socket for them would have to share the port and would
//! receive part of its datagrams.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;

use super::address::{CONTROL_LEN, Control, ControlWriter, write_address};
use super::socket::set_outer_fragments;

/// Most datagrams in one run (`UDP_MAX_SEGMENTS` of the oldest kernels with `UDP_SEGMENT`).
const MAX_SEGMENTS: usize = 64;
/// Most bytes in one run: the largest UDP payload over IPv4.
const MAX_RUN_BYTES: usize = 65_507;
/// Messages handed over with one call.
const MESSAGES: usize = 64;
/// How often a datagram is tried again whose socket another thread has set back to DF meanwhile.
const SET_BACK: u32 = 3;

/// Whether a datagram may be fragmented on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OuterFragments {
    /// It goes whole (DF) or not at all.
    Never,
    /// This host or a router on the way may fragment it.
    Allowed,
}

/// Where a datagram goes and from which of our addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Destination {
    /// The peer's address.
    pub to: SocketAddr,
    /// Our address it learned last, kept as long as it works.
    pub source: Option<IpAddr>,
    /// DSCP and ECN of the outer header.
    pub tos: u8,
}

/// What became of a flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flushed {
    /// Datagrams the kernel refused for good.
    pub refused: u64,
    /// Datagrams larger than the path's MTU.
    pub too_big: u64,
    /// The sticky source address has vanished for at least one destination; its datagrams went without.
    pub source_lost: Option<IpAddr>,
    /// The socket's buffer is full; the rest waits for the next flush.
    pub blocked: bool,
    /// The kernel refused segmentation: the socket sends datagrams one by one from now on.
    pub segmentation_lost: bool,
}

#[derive(Clone, Copy)]
struct Run {
    start: usize,
    len: usize,
    segment: usize,
    count: usize,
    destination: Destination,
    fragments: OuterFragments,
}

/// Datagrams waiting for one socket.
pub struct SendBatch {
    arena: Vec<u8>,
    used: usize,
    runs: Vec<Run>,
    segmentation: bool,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

// SAFETY: as in `ReceiveBatch`: raw pointers point into the other fields and are written anew before every call.
unsafe impl Send for SendBatch {}

impl SendBatch {
    /// Makes room for `capacity` bytes of datagrams; `segmentation` says whether the socket takes `UDP_SEGMENT`.
    #[must_use]
    pub fn new(capacity: usize, segmentation: bool) -> Self {
        // SAFETY: all-zero bytes are valid for these plain C structures.
        let (name, vector, header) = unsafe { (mem::zeroed(), mem::zeroed::<libc::iovec>(), mem::zeroed()) };
        Self {
            arena: vec![0; capacity],
            used: 0,
            runs: Vec::with_capacity(1024),
            segmentation,
            names: vec![name; MESSAGES],
            controls: vec![Control([0; CONTROL_LEN]); MESSAGES],
            vectors: vec![vector; MESSAGES],
            headers: vec![header; MESSAGES],
        }
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether what waits goes over IPv6; `None` when nothing waits.
    #[must_use]
    pub fn family(&self) -> Option<bool> {
        self.runs.first().map(|run| run.destination.to.is_ipv6())
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.used = 0;
    }

    /// Room for one datagram of at most `len` bytes; `None` when the batch is full and must be flushed first.
    #[inline]
    pub fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.runs.len() == self.runs.capacity() {
            return None;
        }
        self.arena.get_mut(self.used..self.used + len)
    }

    /// Takes the first `len` bytes of the room last reserved as a datagram.
    #[inline]
    pub fn commit(&mut self, len: usize, destination: &Destination) {
        let start = self.used;
        self.used += len;
        if self.segmentation
            && let Some(run) = self.runs.last_mut()
            && run.count < MAX_SEGMENTS
            && len <= run.segment
            && run.len == run.count * run.segment
            && run.len + len <= MAX_RUN_BYTES
            && run.destination == *destination
            && run.fragments == OuterFragments::Never
        {
            run.len += len;
            run.count += 1;
            return;
        }
        let fragments = OuterFragments::Never;
        self.runs.push(Run { start, len, segment: len, count: 1, destination: *destination, fragments });
    }

    /// As [`Self::commit`], for a datagram that may be fragmented on its way. It is never joined with others: the kernel
    /// does not cut and fragment at once.
    #[cold]
    pub fn commit_fragmentable(&mut self, len: usize, destination: &Destination) {
        let start = self.used;
        self.used += len;
        let fragments = OuterFragments::Allowed;
        self.runs.push(Run { start, len, segment: len, count: 1, destination: *destination, fragments });
    }

    /// Adds a copied datagram; false when the batch is full.
    pub fn push(&mut self, bytes: &[u8], destination: &Destination, fragments: OuterFragments) -> bool {
        let Some(room) = self.reserve(bytes.len()) else { return false };
        room.copy_from_slice(bytes);
        match fragments {
            OuterFragments::Never => self.commit(bytes.len(), destination),
            OuterFragments::Allowed => self.commit_fragmentable(bytes.len(), destination),
        }
        true
    }

    /// Hands everything to the kernel, as far as it takes it.
    pub fn flush(&mut self, fd: RawFd) -> Flushed {
        let mut flushed = Flushed::default();
        let mut done = 0;
        let mut socket_is = OuterFragments::Never;
        let mut set_back = 0;
        while done < self.runs.len() {
            let first = self.runs[done];
            if first.fragments != socket_is {
                socket_is = first.fragments;
                set_outer_fragments(fd, first.destination.to.is_ipv4(), socket_is);
            }
            let count = self.fill(done);
            // SAFETY: `fill` pointed `count` headers to live memory of this batch.
            let sent = unsafe {
                libc::sendmmsg(fd, self.headers.as_mut_ptr(), count as libc::c_uint, libc::MSG_DONTWAIT as _)
            };
            if sent > 0 {
                done += sent as usize;
                set_back = 0;
                continue;
            }
            // The error is that of the first message not sent.
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            if error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS) {
                flushed.blocked = true;
                break;
            }
            let run = self.runs[done];
            if self.recover(done, &error, &mut flushed) {
                continue;
            }
            if error.raw_os_error() == Some(libc::EMSGSIZE) {
                // Threads share the socket: another one may have put DF back on in between.
                if run.fragments == OuterFragments::Allowed && set_back < SET_BACK {
                    set_back += 1;
                    socket_is = OuterFragments::Never;
                    continue;
                }
                flushed.too_big += run.count as u64;
            } else {
                flushed.refused += run.count as u64;
            }
            done += 1;
        }
        if socket_is == OuterFragments::Allowed
            && let Some(last) = self.runs.get(done.saturating_sub(1))
        {
            set_outer_fragments(fd, last.destination.to.is_ipv4(), OuterFragments::Never);
        }
        self.runs.drain(..done);
        if self.runs.is_empty() {
            self.used = 0;
        }
        flushed
    }

    /// Changes the run so that it may pass after all; false when there is nothing left to try.
    fn recover(&mut self, at: usize, error: &io::Error, flushed: &mut Flushed) -> bool {
        let run = self.runs[at];
        // A source address that has vanished: ENETUNREACH on recent kernels, EINVAL on older ones.
        if let (Some(source), Some(libc::ENETUNREACH | libc::EINVAL | libc::EADDRNOTAVAIL)) =
            (run.destination.source, error.raw_os_error())
        {
            flushed.source_lost = Some(source);
            for later in &mut self.runs[at..] {
                if later.destination.source == Some(source) {
                    later.destination.source = None;
                }
            }
            return true;
        }
        // A device without checksum offload refuses segmentation with EIO, an old kernel with EINVAL.
        if run.count > 1 && matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP)) {
            flushed.segmentation_lost = true;
            self.segmentation = false;
            let singles: Vec<Run> = self
                .runs
                .drain(at..)
                .flat_map(|run| {
                    (0..run.count).map(move |i| {
                        let offset = i * run.segment;
                        let len = run.segment.min(run.len - offset);
                        Run { start: run.start + offset, len, segment: len, count: 1, ..run }
                    })
                })
                .collect();
            self.runs.extend(singles);
            return true;
        }
        false
    }

    /// Points the headers to the runs from `from` on, as far as the socket is to be set alike for them; how many.
    fn fill(&mut self, from: usize) -> usize {
        let most = (self.runs.len() - from).min(MESSAGES);
        let fragments = self.runs[from].fragments;
        let mut count = 0;
        for i in 0..most {
            let run = self.runs[from + i];
            if run.fragments != fragments {
                break;
            }
            count += 1;
            let name_len = write_address(run.destination.to, &mut self.names[i]);
            let mut control = ControlWriter::new(&mut self.controls[i]);
            if run.count > 1 {
                control.segment(run.segment as u16);
            }
            if let Some(source) = run.destination.source {
                control.source(source);
            }
            if run.destination.tos != 0 {
                control.traffic_class(run.destination.to.is_ipv4(), run.destination.tos);
            }
            let control_len = control.len();
            self.vectors[i] = libc::iovec { iov_base: self.arena[run.start..].as_mut_ptr().cast(), iov_len: run.len };
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = std::ptr::from_mut(&mut self.names[i]).cast();
            header.msg_namelen = name_len;
            header.msg_iov = std::ptr::from_mut(&mut self.vectors[i]);
            header.msg_iovlen = 1;
            header.msg_control =
                if control_len == 0 { std::ptr::null_mut() } else { self.controls[i].0.as_mut_ptr().cast() };
            header.msg_controllen = control_len as _;
            header.msg_flags = 0;
        }
        count
    }
}

impl std::fmt::Debug for SendBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendBatch").field("runs", &self.runs.len()).field("bytes", &self.used).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::underlay::receive::ReceiveBatch;

    fn pair() -> (UdpSocket, UdpSocket, Destination) {
        let a = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let b = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let to = b.local_addr().expect("bound");
        (a, b, Destination { to, source: None, tos: 0 })
    }

    fn receive_all(socket: &UdpSocket, datagrams: usize) -> Vec<Vec<u8>> {
        let mut batch = ReceiveBatch::new(16, 65_535);
        let mut all = Vec::new();
        while all.len() < datagrams {
            let count = batch.receive(socket.as_raw_fd()).expect("datagrams wait");
            for i in 0..count {
                let message = batch.message(i).expect("an IP sender");
                all.extend(message.bytes.chunks(message.segment).map(<[u8]>::to_vec));
            }
        }
        all
    }

    #[test]
    fn runs_of_equal_size_arrive_as_sent() {
        let (a, b, to) = pair();
        let mut batch = SendBatch::new(1 << 20, true);
        let sent: Vec<Vec<u8>> =
            [100, 100, 100, 40, 100, 100, 7].iter().enumerate().map(|(i, len)| vec![i as u8; *len]).collect();
        for datagram in &sent {
            assert!(batch.push(datagram, &to, OuterFragments::Never));
        }
        assert_eq!(batch.runs.len(), 2, "a shorter datagram ends a run");
        assert_eq!(batch.flush(a.as_raw_fd()), Flushed::default());
        assert!(batch.is_empty());
        assert_eq!(receive_all(&b, sent.len()), sent);
    }

    #[test]
    fn refused_segmentation_falls_back_to_single_datagrams() {
        let (_, _, to) = pair();
        let mut batch = SendBatch::new(1 << 20, true);
        for _ in 0..3 {
            batch.push(&[1; 50], &to, OuterFragments::Never);
        }
        let mut flushed = Flushed::default();
        assert!(batch.recover(0, &io::Error::from_raw_os_error(libc::EIO), &mut flushed));
        assert!(flushed.segmentation_lost);
        assert_eq!(batch.runs.iter().map(|run| (run.len, run.count)).collect::<Vec<_>>(), [(50, 1); 3]);
    }

    #[test]
    fn vanished_source_is_dropped_and_the_datagram_sent() {
        let (a, b, to) = pair();
        let gone = "198.51.100.77".parse().expect("an address");
        let mut batch = SendBatch::new(4096, true);
        batch.push(b"hello", &Destination { source: Some(gone), ..to }, OuterFragments::Never);
        assert_eq!(batch.flush(a.as_raw_fd()).source_lost, Some(gone));
        assert_eq!(receive_all(&b, 1), [b"hello".to_vec()]);
    }

    #[test]
    fn fragmentable_datagrams_keep_their_place_and_leave_the_socket_as_it_was() {
        let (a, b, to) = pair();
        let before = 3;
        let discover = |value: Option<libc::c_int>| {
            let mut is: libc::c_int = value.unwrap_or(0);
            let pointer = std::ptr::from_mut(&mut is).cast();
            let mut len = 4;
            let (level, name) = (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
            // SAFETY: the option is one int that lives through the call.
            let result = unsafe {
                match value {
                    Some(_) => libc::setsockopt(a.as_raw_fd(), level, name, pointer, len),
                    None => libc::getsockopt(a.as_raw_fd(), level, name, pointer, &mut len),
                }
            };
            assert_eq!(result, 0);
            is
        };
        discover(Some(before));
        let mut batch = SendBatch::new(1 << 20, true);
        let (never, allowed) = (OuterFragments::Never, OuterFragments::Allowed);
        let order = [never, never, allowed, never, allowed, allowed, never];
        let sent: Vec<Vec<u8>> = (0..order.len()).map(|i| vec![i as u8; 100]).collect();
        for (datagram, fragments) in sent.iter().zip(order) {
            assert!(batch.push(datagram, &to, fragments));
        }
        assert_eq!(batch.runs.iter().map(|run| run.count).collect::<Vec<_>>(), [2, 1, 1, 1, 1, 1]);
        assert_eq!([0, 1, 2, 3, 5].map(|from| batch.fill(from)), [1, 1, 1, 2, 1]);
        assert_eq!(batch.flush(a.as_raw_fd()), Flushed::default());
        assert_eq!(receive_all(&b, sent.len()), sent);
        assert_eq!(discover(None), before);
    }

    #[test]
    fn full_batch_refuses_more() {
        let (_, _, to) = pair();
        let mut batch = SendBatch::new(100, true);
        assert!(batch.push(&[0; 60], &to, OuterFragments::Never));
        assert!(!batch.push(&[0; 60], &to, OuterFragments::Never));
    }

    #[test]
    fn oversized_datagram_is_counted_and_the_rest_goes() {
        let (a, b, to) = pair();
        let mut batch = SendBatch::new(200_000, false);
        batch.push(&vec![0; 66_000], &to, OuterFragments::Never);
        batch.push(b"after", &to, OuterFragments::Never);
        assert_eq!(batch.flush(a.as_raw_fd()).too_big, 1);
        assert_eq!(receive_all(&b, 1), [b"after".to_vec()]);
    }
}
