//! Receiving many datagrams with one system call (`recvmmsg`).

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;

use super::address::{CONTROL_LEN, Control, read_address, read_control};

/// One received message: a datagram, or a run of equal-size datagrams joined by the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// The bytes; may hold several datagrams of [`Self::segment`] bytes, the last one shorter.
    pub bytes: &'a [u8],
    /// Bytes per datagram; the length of all when there is one.
    pub segment: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// Our address it was sent to.
    pub local: Option<IpAddr>,
    /// DSCP and ECN of the outer header, where the socket tells.
    pub tos: u8,
    /// The datagram was longer than the buffer and is cut.
    pub truncated: bool,
}

/// Buffers for a batch of messages.
pub struct ReceiveBatch {
    buffers: Vec<u8>,
    buffer_len: usize,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

// SAFETY: the raw pointers in `vectors` and `headers` point into the other fields only and are written anew before
// every system call.
unsafe impl Send for ReceiveBatch {}

impl ReceiveBatch {
    /// Makes room for `messages` messages of at most `buffer_len` bytes.
    #[must_use]
    pub fn new(messages: usize, buffer_len: usize) -> Self {
        // SAFETY: all-zero bytes are valid for these plain C structures.
        let (name, vector, header) = unsafe { (mem::zeroed(), mem::zeroed::<libc::iovec>(), mem::zeroed()) };
        Self {
            buffers: vec![0; messages * buffer_len],
            buffer_len,
            names: vec![name; messages],
            controls: vec![Control([0; CONTROL_LEN]); messages],
            vectors: vec![vector; messages],
            headers: vec![header; messages],
        }
    }

    /// Receives what waits, at most a batch; how many messages.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits; whatever else the socket reports.
    pub fn receive(&mut self, fd: RawFd) -> io::Result<usize> {
        for i in 0..self.headers.len() {
            self.vectors[i] = libc::iovec {
                // SAFETY: `buffers` holds `headers.len()` times `buffer_len` bytes.
                iov_base: unsafe { self.buffers.as_mut_ptr().add(i * self.buffer_len).cast() },
                iov_len: self.buffer_len,
            };
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = std::ptr::from_mut(&mut self.names[i]).cast();
            header.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = std::ptr::from_mut(&mut self.vectors[i]);
            header.msg_iovlen = 1;
            header.msg_control = self.controls[i].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_LEN as _;
            header.msg_flags = 0;
        }
        // SAFETY: every header points to live memory of this batch, exclusively borrowed for the call.
        let count = unsafe {
            libc::recvmmsg(
                fd,
                self.headers.as_mut_ptr(),
                self.headers.len() as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
    }

    /// How many messages a batch holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.headers.len()
    }

    /// Message `index` of the last call; `None` when its sender's address is of no IP family.
    ///
    /// # Panics
    /// When `index` is not below the count the last call returned.
    #[must_use]
    pub fn message(&self, index: usize) -> Option<Received<'_>> {
        let header = &self.headers[index];
        let len = (header.msg_len as usize).min(self.buffer_len);
        let start = index * self.buffer_len;
        let bytes = &self.buffers[start..start + len];
        let control = read_control(&header.msg_hdr);
        let segment = control.segment.map_or(len, usize::from).max(1);
        Some(Received {
            bytes,
            segment,
            from: read_address(&self.names[index])?,
            local: control.local,
            tos: control.tos,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        })
    }
}

impl std::fmt::Debug for ReceiveBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiveBatch").field("messages", &self.headers.len()).finish_non_exhaustive()
    }
}
