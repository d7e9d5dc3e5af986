//! The server of names under load: how many answers a second, how soon, and what floods of garbage do to it.

use anyhow::{Context as _, Result, anyhow, ensure};
use overlay_netns_harness::{Container, Topology, load, netns};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Bound, Figure, LIMIT, Run, Size, pair, percentile, stream};
use crate::{Overlay, resident_kib, udp_socket};

/// Answers per second that one processor must give.
const LEAST: f64 = 30_000.0;
/// Questions of one client under way.
const WINDOW: usize = 64;
/// Questions per second at which the time of each is measured.
const PACE: u64 = 10_000;
/// Questions per second of the honest client beside a flood.
const HONEST: u64 = 1000;
/// A question without an answer for so long is lost.
const LOST: Duration = Duration::from_secs(1);
/// Memory the daemon may have more after a flood.
const GROWTH_KIB: f64 = 1024.0;

pub(super) fn run(run: &Run) -> Result<Vec<Figure>> {
    let overlay = pair("dnsload", run, &[2, 1], Topology::Routed)?;
    let server = SocketAddr::new(overlay.lab.host("h1")?.overlay_v4().into(), 53);
    let seconds = run.count(10, 2);
    let mut figures = capacity(&overlay, server, Duration::from_secs(seconds))?;
    let client = overlay.container("h1c1");
    // Not more than one of five: what the machine does besides is not the server's.
    let calm = paced(client, server, PACE, Duration::from_secs(seconds))?;
    let what = format!("at {} a second: {}", PACE, calm.total);
    figures.push(Figure::new(format!("{what} questions without an answer"), calm.lost(), "", Bound::AtMost(0.0)));
    figures.push(Figure::new(format!("{what} answers, median"), calm.percentile_ms(0.5), "ms", Bound::Told));
    // The suite runs beside other things on an unoptimized build.
    let bound = if run.size == Size::Short { 10.0 } else { 1.0 };
    figures.push(Figure::new(
        format!("{what} answers, 99th percentile"),
        calm.percentile_ms(0.99),
        "ms",
        Bound::AtMost(bound),
    ));
    figures.extend(flood(&overlay, server, run)?);
    Ok(figures)
}

/// A question for the address of the first host.
fn question(id: u16) -> Vec<u8> {
    let rest: &[u8] =
        b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02h1\x04node\x07overlay\x08internal\x00\x00\x01\x00\x01";
    [&id.to_be_bytes()[..], rest].concat()
}

fn is_answer(bytes: &[u8]) -> bool {
    bytes.len() > 12 && bytes[3] & 15 == 0 && bytes[7] == 1
}

/// The thread of the daemon that serves names.
struct ServerThread {
    path: std::path::PathBuf,
    id: i32,
}

impl ServerThread {
    fn find(pid: i32) -> Result<ServerThread> {
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = task?.path();
            if std::fs::read_to_string(path.join("comm"))?.trim() == "names" {
                let id = path.file_name().and_then(|name| name.to_str()).context("a number")?.parse()?;
                return Ok(ServerThread { path, id });
            }
        }
        Err(anyhow!("the daemon has no thread of names"))
    }

    /// Processor time so far.
    fn used(&self) -> Result<Duration> {
        let text = std::fs::read_to_string(self.path.join("schedstat"))?;
        let nanos = text.split_whitespace().next().context("no time in schedstat")?.parse()?;
        Ok(Duration::from_nanos(nanos))
    }

    fn pin(&self, processor: usize) -> Result<()> {
        // SAFETY: the set is plain data, and the thread belongs to this lab.
        let result = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(processor, &mut set);
            libc::sched_setaffinity(self.id, size_of::<libc::cpu_set_t>(), &set)
        };
        ensure!(result == 0, "pinning the server: {}", std::io::Error::last_os_error());
        Ok(())
    }
}

/// As many questions as are answered, from one client after another answer of its own.
fn capacity(overlay: &Overlay, server: SocketAddr, time: Duration) -> Result<Vec<Figure>> {
    let thread = ServerThread::find(overlay.lab.daemon_pid("h1")?)?;
    thread.pin(0)?;
    let socket = client_socket(overlay.container("h1c1"), server)?;
    let (used, began) = (thread.used()?, Instant::now());
    let (mut asked, mut answered) = (0_u64, 0_u64);
    let mut reply = [0; 512];
    while began.elapsed() < time {
        while asked - answered < WINDOW as u64 {
            socket.send(&question(asked as u16))?;
            asked += 1;
        }
        let length = socket.recv(&mut reply).context("a question was not answered")?;
        ensure!(is_answer(&reply[..length]), "a wrong answer");
        answered += 1;
    }
    let rate = answered as f64 / began.elapsed().as_secs_f64();
    let per_second = answered as f64 / (thread.used()? - used).as_secs_f64();
    Ok(vec![
        Figure::new("answers in a second, the server pinned to one processor", rate, "", Bound::Told),
        Figure::new("answers in a second of the server's processor time", per_second, "", Bound::AtLeast(LEAST)),
    ])
}

fn client_socket(container: &Container, server: SocketAddr) -> Result<UdpSocket> {
    let socket = udp_socket(container.view.namespace(), SocketAddr::new(container.v4.into(), 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(LIMIT))?;
    Ok(socket)
}

/// What became of questions asked at an even rate.
struct Asked {
    total: u64,
    times: Vec<f64>,
}

impl Asked {
    fn lost(&self) -> f64 {
        (self.total - self.times.len() as u64) as f64
    }

    fn percentile_ms(&self, part: f64) -> f64 {
        percentile(&mut self.times.clone(), part) * 1e3
    }
}

/// Asks at an even rate; from when each was due to its answer, so that a sender held up makes no time look better.
fn paced(container: &Container, server: SocketAddr, rate: u64, time: Duration) -> Result<Asked> {
    let socket = client_socket(container, server)?;
    socket.set_read_timeout(Some(LOST))?;
    let total = rate * time.as_secs();
    let sent: Vec<AtomicU64> = (0..total).map(|_| AtomicU64::new(0)).collect();
    let began = Instant::now();
    let nanos = || began.elapsed().as_nanos() as u64;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut reply, mut times, mut last) = ([0; 512], Vec::with_capacity(total as usize), 0_u64);
            while let Ok(length) = socket.recv(&mut reply) {
                if !is_answer(&reply[..length]) {
                    continue;
                }
                let now = nanos();
                // The id is the low half of the number; the rest follows from the last one.
                let id = u64::from(u16::from_be_bytes([reply[0], reply[1]]));
                let near = last + 32_768;
                let number = near.saturating_sub((near.wrapping_sub(id)) % 65_536);
                if let Some(at) = sent.get(number as usize) {
                    last = last.max(number);
                    times.push((now - at.load(Ordering::Acquire)) as f64 / 1e9);
                }
                if times.len() as u64 == total {
                    break;
                }
            }
            times
        });
        let gap = 1_000_000_000 / rate;
        let mut failed = None;
        for number in 0..total {
            let due = number * gap;
            while nanos() < due {
                std::hint::spin_loop();
            }
            sent[number as usize].store(due.max(1), Ordering::Release);
            if let Err(error) = socket.send(&question(number as u16)) {
                failed = Some(error);
                break;
            }
        }
        let times = receiver.join().map_err(|_| anyhow!("the receiver panicked"))?;
        if let Some(error) = failed {
            return Err(error).context("asking");
        }
        Ok(Asked { total, times })
    })
}

/// Datagrams that the server found to be no questions, from the page of figures.
fn malformed(overlay: &Overlay) -> Result<u64> {
    let host = overlay.lab.host("h1")?.view().namespace();
    let page = netns::within(host, || {
        let mut stream = TcpStream::connect("127.0.0.1:9821")?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1:9821\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    })?;
    let line = page.lines().find(|line| line.starts_with("overlay_dns_queries") && line.contains("malformed"));
    let value = line.and_then(|line| line.rsplit_once(' ')).context("no figure of malformed questions")?.1;
    Ok(value.parse::<f64>()? as u64)
}

/// Garbage as fast as one sender can beside an honest client.
fn flood(overlay: &Overlay, server: SocketAddr, run: &Run) -> Result<Vec<Figure>> {
    let pid = overlay.lab.daemon_pid("h1")?;
    let time = Duration::from_secs(run.count(20, 3));
    let bad = overlay.container("h1c2");
    let socket = client_socket(bad, server)?;
    // Memory that the first floods of a daemon's life take is taken before it is looked at.
    let mut random = ChaCha20Rng::seed_from_u64(run.seed);
    let forms: Vec<Vec<u8>> = (0..4096).map(|number| garbage(number, &mut random)).collect();
    for form in &forms {
        let _ = socket.send(form);
    }
    stream::rest(Duration::from_millis(200));
    let (before, noticed) = (memory(pid)?, malformed(overlay)?);
    let (over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let asked = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0;
            while !over.load(Ordering::Relaxed) {
                // Answers to some kinds fill the buffer, and nobody reads them.
                let _ = socket.send(&forms[number % forms.len()]);
                number += 1;
            }
            sent.store(number as u64, Ordering::Relaxed);
        });
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // Connections with garbage, at most a few hundred a second.
                if let Ok(mut stream) =
                    netns::within(bad.view.namespace(), || load::connect(server, Duration::from_secs(1)))
                {
                    let _ = stream.write_all(&forms[7]);
                }
                stream::rest(Duration::from_millis(5));
            }
        });
        let asked = paced_gently(overlay.container("h1c1"), server, HONEST, time);
        over.store(true, Ordering::Relaxed);
        asked
    })?;
    let rate = sent.load(Ordering::Relaxed) as f64 / time.as_secs_f64();
    let refused = malformed(overlay)? - noticed;
    let grown = memory(pid)? as f64 - before as f64;
    ensure!(refused > 0, "no garbage was noticed");
    // The daemon lives and is the same.
    ensure!(overlay.lab.daemon_pid("h1")? == pid && overlay.status("h1").is_ok(), "the daemon ended");
    let share = 100.0 * asked.times.len() as f64 / asked.total as f64;
    Ok(vec![
        Figure::new("garbage sent", rate, "datagrams a second", Bound::Told),
        Figure::new("answered meanwhile of 1,000 questions a second", share, "%", Bound::AtLeast(99.0)),
        Figure::new("their 99th percentile", asked.percentile_ms(0.99), "ms", Bound::AtMost(100.0)),
        Figure::new("memory grown by garbage", grown, "KiB", Bound::AtMost(GROWTH_KIB)),
    ])
}

fn memory(pid: i32) -> Result<u64> {
    resident_kib(pid).context("the daemon is gone")
}

/// As [`paced`], sleeping between questions: another thread needs the processor.
fn paced_gently(container: &Container, server: SocketAddr, rate: u64, time: Duration) -> Result<Asked> {
    let socket = client_socket(container, server)?;
    socket.set_read_timeout(Some(LOST))?;
    let total = rate * time.as_secs();
    let sent: Vec<AtomicU64> = (0..total).map(|_| AtomicU64::new(0)).collect();
    let began = Instant::now();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut reply, mut times) = ([0; 512], Vec::new());
            while let Ok(length) = socket.recv(&mut reply) {
                let id = usize::from(u16::from_be_bytes([reply[0], reply[1]]));
                if let (true, Some(at)) = (is_answer(&reply[..length]), sent.get(id)) {
                    times.push((began.elapsed().as_nanos() as u64 - at.load(Ordering::Acquire)) as f64 / 1e9);
                }
            }
            times
        });
        let mut next = 0;
        while next < total {
            let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
            while next < due.min(total) {
                sent[next as usize].store(began.elapsed().as_nanos() as u64, Ordering::Release);
                let _ = socket.send(&question(next as u16));
                next += 1;
            }
            stream::rest(Duration::from_millis(1));
        }
        let times = receiver.join().map_err(|_| anyhow!("the receiver panicked"))?;
        Ok(Asked { total, times })
    })
}

/// Bytes that are no good question, of every kind: short, random, answers, cut, with loops, with wrong counts.
fn garbage(number: u32, random: &mut ChaCha20Rng) -> Vec<u8> {
    let mut bytes = question(number as u16);
    match number % 8 {
        0 => bytes.truncate(random.next_u32() as usize % 12),
        1 => {
            bytes = vec![0; random.next_u32() as usize % 512];
            random.fill_bytes(&mut bytes);
        }
        // An answer, which a server must not answer.
        2 => bytes[2] |= 0x80,
        3 => bytes.truncate(12 + random.next_u32() as usize % (bytes.len() - 12)),
        // A name that points to itself.
        4 => bytes.splice(12.., [0xc0, 12, 0, 1, 0, 1]).for_each(drop),
        // More of everything than there is.
        5 => bytes[4..12].fill(0xff),
        6 => {
            let at = random.next_u32() as usize % bytes.len();
            bytes[at] = random.next_u32() as u8;
            bytes[2] |= 0x80;
        }
        _ => bytes.extend((0..1000).map(|_| random.next_u32() as u8)),
    }
    bytes
}
