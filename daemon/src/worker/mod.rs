//! A worker: one thread that owns a TUN queue, its receive buffers and its part of the flow table, in both directions.
//!
//! One turn: receive at most a batch from every socket, read at most a batch of super-packets, flush, and only when a few
//! turns in a row found nothing, sleep in `poll`. While an underlay socket is full the TUN is not read: its ring takes
//! what comes and then the kernel drops.

#![allow(unsafe_code)]

mod inbound;
mod late;
mod outbound;
mod transmit;
mod waiting;

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use overlay_dataplane::waiting::Waiting;
use overlay_dataplane::{Engine, Reply};

use crate::device::{DeviceConfig, Queue, clear_persistence};
use crate::shared::{SharedRef, TurnCounters, WorkerCommand, WorkerEvent, WorkerReport};
use crate::snapshot::Snapshot;
use crate::underlay::{Family, RawProtocol};
use inbound::Inbound;
use late::Lates;
pub(crate) use transmit::needs_fragments;
use transmit::{Held, Transmitter};
pub use transmit::{Outgoing, SendSockets};
use waiting::Kept;

/// Super-packets read in one turn.
const READS: usize = 16;
/// Largest packet or super-packet.
const MAX_PACKET: usize = 65_535;
/// Turns without work before the worker sleeps. Each costs a few non-blocking system calls.
const IDLE_TURNS: u32 = 2;
/// Longest sleep: timers of the flow table run at least this often.
const SLEEP: Duration = Duration::from_secs(5);
/// How often the flow table's timers run under load.
const EXPIRE_EVERY: Duration = Duration::from_millis(100);
/// Longest sleep while packets wait for labels.
const WAITING_LOOK: Duration = Duration::from_millis(100);
/// How often a lost device is tried again.
const REOPEN_EVERY: Duration = Duration::from_millis(100);

/// The sockets a worker receives from; sending uses the same descriptors.
#[derive(Debug, Default)]
pub struct ReceiveSockets {
    /// UDP sockets.
    pub udp: Vec<Arc<OwnedFd>>,
    /// Raw sockets.
    pub raw: Vec<(Arc<OwnedFd>, Family, RawProtocol)>,
}

/// Everything a worker is made of.
pub struct Worker {
    shared: SharedRef,
    device: DeviceConfig,
    queue: Option<Queue>,
    reopen_at: Instant,
    engine: Engine,
    commands: Receiver<WorkerCommand>,
    wake: OwnedFd,
    transmitter: Transmitter,
    inbound: Inbound,
    lates: Lates,
    read_buffer: Box<[u8]>,
    fragment_buffer: Box<[u8]>,
    reply: Reply,
    blocked: bool,
    expired_at: Instant,
    listen_port: u16,
    turns: TurnCounters,
    waiting: Waiting<Kept>,
    /// The tables that packets which wait were last decided with.
    waiting_revision: u64,
}

/// What [`Worker::new`] needs.
#[derive(Debug)]
pub struct WorkerParts {
    /// The device, to open it again when it vanishes.
    pub device: DeviceConfig,
    /// The opened queue.
    pub queue: Queue,
    /// Filter and flow table.
    pub engine: Engine,
    /// From the control side.
    pub commands: Receiver<WorkerCommand>,
    /// Readable when a command waits (an eventfd).
    pub wake: OwnedFd,
    /// To receive with.
    pub receive: ReceiveSockets,
    /// To send with.
    pub send: SendSockets,
    /// Our UDP port.
    pub listen_port: u16,
}

impl Worker {
    /// Assembles a worker.
    #[must_use]
    pub fn new(shared: SharedRef, parts: WorkerParts) -> Self {
        let now = Instant::now();
        Self {
            transmitter: Transmitter::new(shared.clone(), &parts.send),
            inbound: Inbound::new(shared.clone(), parts.receive, usize::from(parts.device.mtu.get())),
            lates: Lates::default(),
            shared,
            device: parts.device,
            queue: Some(parts.queue),
            reopen_at: now,
            engine: parts.engine,
            commands: parts.commands,
            wake: parts.wake,
            read_buffer: vec![0; MAX_PACKET + 1].into_boxed_slice(),
            fragment_buffer: vec![0; MAX_PACKET + 1].into_boxed_slice(),
            reply: Reply::new(),
            blocked: false,
            expired_at: now,
            listen_port: parts.listen_port,
            turns: TurnCounters::default(),
            waiting: Waiting::default(),
            waiting_revision: 0,
        }
    }

    /// Runs until told to stop.
    pub fn run(mut self) {
        let mut idle = 0;
        loop {
            let now = Instant::now();
            let shared = self.shared.clone();
            let snapshot = shared.snapshot.load();
            let received = self.receive(&snapshot, now);
            let read = if self.blocked { 0 } else { self.read_device(&snapshot, now) };
            let late = if self.blocked { 0 } else { self.send_late(&snapshot, now) };
            let work = received + read + late;
            if !self.waiting.is_empty() {
                self.look_at_waiting(&snapshot, now);
            }
            self.tell_introductions();
            self.turns.turns += 1;
            self.turns.received += received as u64;
            self.turns.read += read as u64;
            self.blocked = self.transmitter.flush();
            if work == 0 || now.saturating_duration_since(self.expired_at) >= EXPIRE_EVERY {
                self.engine.expire(now);
                self.expired_at = now;
                self.report_rules();
            }
            idle = if work > 0 { 0 } else { idle + 1 };
            if idle > IDLE_TURNS || self.blocked {
                self.turns.sleeps += 1;
                self.sleep();
                idle = 0;
            }
            while let Ok(command) = self.commands.try_recv() {
                if !self.obey(command) {
                    return;
                }
            }
            if self.queue.is_none() {
                self.reopen();
            }
        }
    }

    /// Sleeps until a descriptor has something.
    fn sleep(&mut self) {
        const MAX: usize = 24;
        let mut polled = [libc::pollfd { fd: -1, events: 0, revents: 0 }; MAX];
        let reading = if self.blocked { None } else { self.queue.as_ref().map(Queue::raw_fd) };
        let inputs = std::iter::once(self.wake.as_raw_fd()).chain(reading).chain(self.inbound.descriptors());
        let inputs = inputs.map(|fd| (fd, libc::POLLIN));
        let outputs = self.transmitter.waiting().map(|fd| (fd, libc::POLLOUT));
        let mut count = 0;
        for (slot, (fd, events)) in polled.iter_mut().zip(inputs.chain(outputs)) {
            *slot = libc::pollfd { fd, events, revents: 0 };
            count += 1;
        }
        let longest = match (&self.queue, self.waiting.is_empty()) {
            (None, _) => REOPEN_EVERY,
            (Some(_), false) => WAITING_LOOK,
            (Some(_), true) => SLEEP,
        };
        // What waits for its turn waits on while nothing can be sent.
        let next = self.lates.next().filter(|_| !self.blocked);
        let longest = next.map_or(longest, |next| next.saturating_duration_since(Instant::now()).min(longest));
        let longest =
            libc::timespec { tv_sec: longest.as_secs() as libc::time_t, tv_nsec: longest.subsec_nanos().into() };
        // SAFETY: `polled` holds `count` entries, it and the time live through the call, and no mask is given.
        unsafe { libc::ppoll(polled.as_mut_ptr(), count, &longest, std::ptr::null()) };
        if polled[0].revents != 0 {
            drain(self.wake.as_raw_fd());
        }
    }

    /// Obeys one command; false to end.
    fn obey(&mut self, command: WorkerCommand) -> bool {
        match command {
            WorkerCommand::Inject(mut packet) => {
                let shared = self.shared.clone();
                let snapshot = shared.snapshot.load();
                self.inject(&snapshot, &mut packet, Instant::now());
                self.blocked = self.transmitter.flush();
            }
            // The next turn looks.
            WorkerCommand::LookAgain => {}
            WorkerCommand::Counters(answer) => {
                let _ = answer.send(WorkerReport { engine: self.engine.counters().clone(), turns: self.turns });
            }
            WorkerCommand::Stop { remove_device } => {
                if let (true, Some(queue)) = (remove_device, &self.queue)
                    && let Err(error) = clear_persistence(queue)
                {
                    tracing::warn!(cause = %error, "the TUN device stays");
                }
                return false;
            }
        }
        true
    }

    fn report_rules(&mut self) {
        let mut events = Vec::new();
        let suppressed = self.engine.take_rule_events(&mut events);
        if !events.is_empty() || suppressed > 0 {
            let _ = self.shared.events.try_send(WorkerEvent::Rules(events, suppressed));
        }
    }

    fn device_lost(&mut self) {
        if self.queue.take().is_some() {
            self.reopen_at = Instant::now();
            let _ = self.shared.events.try_send(WorkerEvent::DeviceLost);
        }
    }

    fn reopen(&mut self) {
        let now = Instant::now();
        if now < self.reopen_at {
            return;
        }
        self.reopen_at = now + REOPEN_EVERY;
        if let Ok(queue) = Queue::open(&self.device, crate::device::QueueIndex(0)) {
            self.queue = Some(queue);
            let _ = self.shared.events.try_send(WorkerEvent::DeviceBack);
        }
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("queue", &self.queue).finish_non_exhaustive()
    }
}

fn drain(fd: RawFd) {
    let mut count = [0u8; 8];
    // SAFETY: an eventfd read writes eight bytes.
    unsafe { libc::read(fd, count.as_mut_ptr().cast(), count.len()) };
}

/// The control side's handle to a worker's command queue.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    commands: crossbeam_channel::Sender<WorkerCommand>,
    wake: Arc<OwnedFd>,
}

impl WorkerHandle {
    /// A bounded command queue with its wake-up descriptor.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn channel() -> std::io::Result<(Self, Receiver<WorkerCommand>, OwnedFd)> {
        use std::os::fd::FromRawFd;
        let (commands, receiver) = crossbeam_channel::bounded(4096);
        // SAFETY: eventfd takes its arguments by value; the new descriptor is owned by nothing else.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: as above.
        let wake = unsafe { OwnedFd::from_raw_fd(fd) };
        let theirs = wake.try_clone()?;
        Ok((Self { commands, wake: Arc::new(wake) }, receiver, theirs))
    }

    /// Queues a command and wakes the worker; false when the queue is full or the worker has ended.
    pub fn send(&self, command: WorkerCommand) -> bool {
        let sent = self.commands.try_send(command).is_ok();
        let one = 1u64.to_ne_bytes();
        // SAFETY: an eventfd write reads eight bytes.
        unsafe { libc::write(self.wake.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        sent
    }
}

/// Loads the snapshot's inner MTU of a peer.
#[must_use]
pub fn inner_mtu(snapshot: &Snapshot, index: overlay_wire::PeerIndex) -> usize {
    snapshot.tables.peer(index).map_or(0, |peer| usize::from(peer.inner_mtu.get()))
}

/// Drops a held lock: the name says why a call site does it.
fn release(held: &mut Option<Held<'_>>) {
    *held = None;
}
