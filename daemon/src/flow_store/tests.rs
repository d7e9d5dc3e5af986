//! What a file is used for, and every way in which it is not.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use etherparse::PacketBuilder;
use overlay_dataplane::{
    CompiledPolicy, Engine, FlowSelector, FlowSnapshot, LocalAddresses, PeerInfo, Reply, Route, Tables, Verdict,
};
use overlay_routing::fib::Fib;
use overlay_wire::packet::Headers;
use overlay_wire::policy::PolicySet;
use overlay_wire::{Mtu, PeerIndex};
use tempfile::TempDir;

use super::*;
use crate::events::EventLog;

const HOST: HostId = HostId([7; 16]);

fn table() -> Arc<Conntrack> {
    Arc::new(Conntrack::new(1024, [3; 16], Instant::now()))
}

/// A table with this many unanswered UDP flows.
fn filled(flows: u16) -> Arc<Conntrack> {
    let table = table();
    let now = Instant::now();
    let prefix = |text: &str| text.parse().expect("a prefix");
    let policy: PolicySet = "default members".parse().expect("a policy");
    let peer = PeerInfo { name: "h2".to_owned(), inner_mtu: Mtu::ETHERNET, authenticated: true, member: true };
    let tables = Tables {
        owners: Fib::build(vec![
            (prefix("10.42.1.0/24"), Route::Local),
            (prefix("10.42.2.0/24"), Route::Peer(PeerIndex(0))),
        ]),
        policy: CompiledPolicy::compile(&policy, &|_: &str| None),
        revision: 1,
        peers: vec![peer],
        local: LocalAddresses::default(),
        rates: overlay_dataplane::RateTable::default(),
    };
    let mut engine = Engine::for_worker(&table, now);
    for port in 1..=flows {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4([10, 42, 1, 4], [10, 42, 2, 4], 64).udp(port, 53);
        builder.write(&mut packet, &[0; 8]).expect("memory");
        let headers = Headers::parse(&packet).expect("a packet");
        let verdict = engine.outbound(&tables, &headers, &mut packet, 36, 1, now, &mut Reply::new());
        assert_eq!(verdict, Verdict::Forward(PeerIndex(0)));
    }
    table
}

fn shown(table: &Conntrack) -> Vec<FlowSnapshot> {
    table.flows(&FlowSelector::default(), 1000, Instant::now())
}

struct World {
    directory: TempDir,
    store: FlowStore,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let uid = directory.path().metadata().expect("it is there").uid();
        let store = FlowStore::new(directory.path(), HOST, uid);
        Self { directory, store }
    }

    /// With a file of five flows, written after the last packet.
    fn saved() -> Self {
        let world = Self::new();
        assert_eq!(world.store.save(&filled(5), SavedWhile::Stopped).expect("writable"), 5);
        world
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join(FILE)
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).expect("the file is there")
    }

    fn load(&self) -> Result<Loaded, FlowFileError> {
        self.store.load(BootTime::now().expect("a clock"))
    }

    fn replace(&self, bytes: &[u8]) -> Result<Loaded, FlowFileError> {
        std::fs::write(self.path(), bytes).expect("writable");
        self.load()
    }
}

#[test]
fn saved_flows_come_back_and_the_file_is_private() {
    let world = World::saved();
    assert_eq!(world.path().metadata().expect("there").permissions().mode() & 0o777, 0o600);
    assert!(matches!(world.load(), Ok(Loaded::Flows { saved: SavedWhile::Stopped, .. })));
    let restored = table();
    let told = world.store.restore(&restored).expect("usable").expect("a file");
    assert!(told.starts_with("5 flows are taken up again"), "{told}");
    let ports: Vec<u16> = shown(&restored).iter().map(|flow| flow.tuple.src_port).collect();
    assert_eq!(ports, [1, 2, 3, 4, 5]);
    // Packets pass from here on, and the file says so at once.
    assert!(matches!(world.load(), Ok(Loaded::Flows { saved: SavedWhile::Running, .. })));
    let left: Vec<_> = std::fs::read_dir(world.directory.path()).expect("readable").flatten().collect();
    assert_eq!(left.len(), 1, "nothing but the file: {left:?}");
}

#[test]
fn first_start_says_nothing() {
    let world = World::new();
    assert_eq!(world.store.restore(&table()), Ok(None));
}

#[test]
fn damage_anywhere_is_noticed() {
    let world = World::saved();
    let whole = world.bytes();
    assert!(matches!(world.replace(&whole), Ok(Loaded::Flows { .. })), "the control: undamaged bytes are used");
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        let outcome = world.replace(&bytes);
        let expected = match at {
            0..8 => matches!(outcome, Err(FlowFileError::Magic)),
            8..10 => matches!(outcome, Err(FlowFileError::Newer(_))),
            _ => matches!(outcome, Err(FlowFileError::Checksum)),
        };
        assert!(expected, "byte {at}: {outcome:?}");
    }
    for length in 0..whole.len() {
        let outcome = world.replace(&whole[..length]);
        let noticed = matches!(outcome, Err(FlowFileError::Size(_) | FlowFileError::Checksum));
        assert!(noticed, "{length} bytes: {outcome:?}");
    }
}

#[test]
fn unusable_file_is_told_in_one_line_and_written_anew() {
    let world = World::saved();
    std::fs::write(world.path(), b"ovlflows and nothing else that belongs here").expect("writable");
    let empty = table();
    let told = world.store.restore(&empty).expect_err("damaged");
    assert!(told.contains("no flow is restored") && !told.contains('\n'), "{told}");
    assert!(empty.is_empty());
    assert!(matches!(world.load(), Ok(Loaded::Flows { .. })));
}

#[test]
fn newer_file_is_kept_aside_as_it_is() {
    let world = World::saved();
    let mut bytes = world.bytes();
    bytes[9] = 2;
    std::fs::write(world.path(), &bytes).expect("writable");
    let told = world.store.restore(&table()).expect_err("newer");
    assert!(told.contains("version 2, this release knows 1"), "{told}");
    let aside = world.directory.path().join("flows.state.newer");
    assert!(told.contains(&aside.display().to_string()), "{told}");
    assert_eq!(std::fs::read(aside).expect("kept"), bytes);
}

#[test]
fn file_of_another_host_user_or_kind_is_not_used() {
    let world = World::saved();
    let other = FlowStore { host: HostId([8; 16]), ..world.store.clone() };
    let clock = BootTime::now().expect("a clock");
    assert!(matches!(other.load(clock), Err(FlowFileError::OtherHost(HOST))));
    let own = world.store.uid + 1;
    let stranger = FlowStore { uid: own, ..world.store.clone() };
    assert!(matches!(stranger.load(clock), Err(FlowFileError::Owner { .. })));
    let elsewhere = world.directory.path().join("elsewhere");
    std::fs::rename(world.path(), &elsewhere).expect("writable");
    symlink(&elsewhere, world.path()).expect("writable");
    assert!(matches!(world.load(), Err(FlowFileError::Kind)));
    std::fs::remove_file(world.path()).expect("there");
    std::fs::create_dir(world.path()).expect("writable");
    assert!(matches!(world.load(), Err(FlowFileError::Kind)));
    std::fs::remove_dir(world.path()).expect("there");
    let huge = File::create(world.path()).expect("writable");
    huge.set_len(1 << 40).expect("a sparse file");
    assert!(matches!(world.load(), Err(FlowFileError::Size(_))));
}

#[test]
fn earlier_boot_and_a_clock_set_back_give_no_flows() {
    let world = World::saved();
    let clock = BootTime::now().expect("a clock");
    let later = BootTime { elapsed: clock.elapsed + Duration::from_secs(20), ..clock };
    match world.store.load(later) {
        Ok(Loaded::Flows { gap, .. }) => assert!(gap >= Duration::from_secs(20), "{gap:?}"),
        other => panic!("{other:?}"),
    }
    let boot = BootTime { boot: [1; 16], ..clock };
    assert!(matches!(world.store.load(boot), Ok(Loaded::EarlierBoot)));
    let before = BootTime { elapsed: Duration::ZERO, ..clock };
    assert!(matches!(world.store.load(before), Ok(Loaded::EarlierBoot)));
}

#[test]
fn failed_save_leaves_the_last_file_and_is_told_once() {
    let world = World::saved();
    let before = world.bytes();
    let obstacle = world.path().with_extension("new");
    std::fs::create_dir(&obstacle).expect("writable");
    let (figures, events) = (Arc::new(SaveFigures::default()), EventLog::default());
    let mut told = events.subscribe();
    let save = || {
        let saver = FlowSaver::start(world.store.clone(), filled(2), Arc::clone(&figures), events.clone());
        saver.expect("a thread").finish(SavedWhile::Stopped);
    };
    save();
    save();
    assert_eq!(world.bytes(), before);
    assert_eq!(figures.failed.load(Relaxed), 2);
    assert!(figures.problem.lock().is_some());
    std::fs::remove_dir(&obstacle).expect("there");
    save();
    assert_eq!((figures.saved.load(Relaxed), figures.flows.load(Relaxed)), (1, 2));
    assert!(figures.problem.lock().is_none());
    let kinds: Vec<String> = std::iter::from_fn(|| told.try_recv().ok()).map(|event| event.kind).collect();
    assert_eq!(kinds, ["flows-not-saved", "flows-saved"]);
}

#[test]
fn running_daemon_saves_by_itself() {
    let world = World::new();
    let figures = Arc::new(SaveFigures::default());
    let saver = FlowSaver::start(world.store.clone(), filled(3), Arc::clone(&figures), EventLog::default());
    let deadline = Instant::now() + Duration::from_secs(60);
    while figures.saved.load(Relaxed) == 0 {
        assert!(Instant::now() < deadline, "nothing was saved");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    assert!(matches!(world.load(), Ok(Loaded::Flows { saved: SavedWhile::Running, .. })));
    saver.expect("a thread").finish(SavedWhile::Stopped);
    assert!(matches!(world.load(), Ok(Loaded::Flows { saved: SavedWhile::Stopped, .. })));
}
