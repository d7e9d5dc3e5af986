//! What becomes of state files that are cut, changed, foreign or newer, and of a disk that takes nothing.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use super::*;

const NAME: &str = "thing";

fn open(path: &Path) -> Result<(Slots, Option<Loaded>), StateError> {
    Slots::open(&Arc::new(StateDir::open(path)?), NAME, 1)
}

fn payload(path: &Path) -> Option<Vec<u8>> {
    open(path).expect("usable state").1.map(|loaded| loaded.payload.to_vec())
}

fn slot(path: &Path, letter: &str) -> PathBuf {
    path.join(format!("{NAME}.{letter}"))
}

fn stored(path: &Path, payloads: &[&[u8]]) {
    let (mut slots, _) = open(path).expect("a fresh directory");
    payloads.iter().for_each(|payload| slots.store(payload).expect("room"));
}

#[test]
fn newest_state_is_found_again_and_erased_state_is_not() {
    let directory = tempfile::tempdir().expect("a directory");
    assert_eq!(payload(directory.path()), None);
    stored(directory.path(), &[b"one", b"two", b""]);
    assert_eq!(payload(directory.path()).as_deref(), Some(&b""[..]));
    stored(directory.path(), &[b"three"]);
    assert_eq!(payload(directory.path()).as_deref(), Some(&b"three"[..]));
    for letter in ["a", "b"] {
        let mode = fs::metadata(slot(directory.path(), letter)).expect("a slot").permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }
    open(directory.path()).expect("usable").0.erase().expect("removable");
    assert_eq!(payload(directory.path()), None);
}

#[test]
fn every_single_byte_changed_in_one_copy_is_seen_and_loses_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    stored(directory.path(), &[b"older", b"the newest state"]);
    let whole = fs::read(slot(directory.path(), "a")).expect("a slot");
    for letter in ["a", "b"] {
        for place in 0..whole.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[place] ^= flip;
                fs::write(slot(directory.path(), letter), &bytes).expect("writable");
                let loaded = open(directory.path()).expect("the other copy is whole").1.expect("state");
                assert_eq!(&**loaded.payload, b"the newest state", "byte {place} of {letter}");
                let damage = loaded.damage.expect("damage is told");
                assert!(damage.contains(&format!("{NAME}.{letter}")), "{damage}");
                // The copy was put right.
                assert!(open(directory.path()).expect("usable").1.expect("state").damage.is_none());
            }
        }
    }
}

#[test]
fn every_single_byte_changed_in_both_copies_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    stored(directory.path(), &[b"the newest state"]);
    let whole = fs::read(slot(directory.path(), "a")).expect("a slot");
    for place in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x20;
        for letter in ["a", "b"] {
            fs::write(slot(directory.path(), letter), &bytes).expect("writable");
        }
        let error = open(directory.path()).expect_err("no copy is whole");
        assert!(matches!(error, StateError::Damaged { .. }), "byte {place}: {error}");
        assert_eq!(fs::read(slot(directory.path(), "a")).expect("still there"), bytes);
    }
    for letter in ["a", "b"] {
        fs::write(slot(directory.path(), letter), &whole).expect("writable");
    }
    assert_eq!(payload(directory.path()).as_deref(), Some(&b"the newest state"[..]), "the control");
}

#[test]
fn every_truncation_is_seen_and_loses_nothing_while_the_other_copy_is_whole() {
    let directory = tempfile::tempdir().expect("a directory");
    stored(directory.path(), &[b"older", b"the newest state"]);
    let whole = fs::read(slot(directory.path(), "b")).expect("a slot");
    for length in 0..whole.len() {
        for letter in ["a", "b"] {
            fs::write(slot(directory.path(), letter), &whole[..length]).expect("writable");
            assert_eq!(payload(directory.path()).as_deref(), Some(&b"the newest state"[..]), "{length} of {letter}");
        }
        for letter in ["a", "b"] {
            fs::write(slot(directory.path(), letter), &whole[..length]).expect("writable");
        }
        assert!(matches!(open(directory.path()), Err(StateError::Damaged { .. })), "{length} bytes");
        for letter in ["a", "b"] {
            fs::write(slot(directory.path(), letter), &whole).expect("writable");
        }
    }
    let longer = [whole.as_slice(), b"!"].concat();
    fs::write(slot(directory.path(), "a"), longer).expect("writable");
    assert!(open(directory.path()).expect("usable").1.expect("state").damage.is_some(), "surplus bytes are damage");
}

#[test]
fn crash_between_the_two_copies_leaves_the_newer_one() {
    let directory = tempfile::tempdir().expect("a directory");
    stored(directory.path(), &[b"old"]);
    let old = fs::read(slot(directory.path(), "b")).expect("a slot");
    stored(directory.path(), &[b"new"]);
    fs::write(slot(directory.path(), "b"), &old).expect("writable");
    fs::write(directory.path().join(format!("{NAME}.b.new")), b"half").expect("a leftover");
    assert_eq!(payload(directory.path()).as_deref(), Some(&b"new"[..]));
    // Both copies are the same again, and later changes count as later.
    fs::remove_file(slot(directory.path(), "a")).expect("removable");
    assert_eq!(payload(directory.path()).as_deref(), Some(&b"new"[..]));
    stored(directory.path(), &[b"newer"]);
    assert_eq!(payload(directory.path()).as_deref(), Some(&b"newer"[..]));
}

#[test]
fn state_of_a_newer_release_is_refused_and_never_overwritten() {
    let directory = tempfile::tempdir().expect("a directory");
    let state = Arc::new(StateDir::open(directory.path()).expect("own directory"));
    let (mut newer, _) = Slots::open(&state, NAME, 2).expect("a fresh directory");
    newer.store(b"of tomorrow").expect("room");
    let before = fs::read(slot(directory.path(), "a")).expect("a slot");
    let error = open(directory.path()).expect_err("a newer file");
    assert!(matches!(error, StateError::Newer { version: 2, known: 1, .. }), "{error}");
    assert_eq!(error.to_api().code, "STATE_NEWER");
    // Also beside a whole copy of this release: it would be a step back.
    fs::remove_file(slot(directory.path(), "b")).expect("removable");
    assert!(matches!(open(directory.path()), Err(StateError::Newer { .. })));
    assert_eq!(fs::read(slot(directory.path(), "a")).expect("a slot"), before);
    let (_, loaded) = Slots::open(&state, NAME, 3).expect("a later release reads it");
    assert_eq!(&**loaded.expect("state").payload, b"of tomorrow");
}

#[test]
fn copy_of_another_file_is_damage() {
    let directory = tempfile::tempdir().expect("a directory");
    stored(directory.path(), &[b"mine"]);
    let state = Arc::new(StateDir::open(directory.path()).expect("own directory"));
    for letter in ["a", "b"] {
        fs::copy(slot(directory.path(), letter), directory.path().join(format!("other.{letter}"))).expect("copied");
    }
    assert!(matches!(Slots::open(&state, "other", 1), Err(StateError::Damaged { .. })));
}

#[test]
fn directory_that_others_may_write_or_that_is_a_link_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let inner = directory.path().join("state");
    fs::create_dir(&inner).expect("a directory");
    for mode in [0o770, 0o702, 0o777] {
        fs::set_permissions(&inner, Permissions::from_mode(mode)).expect("chmod");
        let error = StateDir::open(&inner).expect_err("others may write");
        assert!(matches!(error, StateError::Writable { .. }), "{mode:o}: {error}");
        assert_eq!(error.to_api().code, "STATE_FOREIGN");
    }
    fs::set_permissions(&inner, Permissions::from_mode(0o755)).expect("chmod");
    StateDir::open(&inner).expect("others may look");
    let link = directory.path().join("link");
    symlink(&inner, &link).expect("a link");
    assert!(matches!(StateDir::open(&link), Err(StateError::Io { .. })));
}

#[test]
fn link_or_pipe_or_open_file_in_place_of_a_slot_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    stored(directory.path(), &[b"mine"]);
    let kept = directory.path().join("kept");
    let path = slot(directory.path(), "a");
    fs::rename(&path, &kept).expect("moved");
    symlink(&kept, &path).expect("a link");
    assert!(matches!(open(directory.path()), Err(StateError::Io { .. })));
    fs::remove_file(&path).expect("removed");
    assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo runs").success());
    assert!(matches!(open(directory.path()), Err(StateError::NotRegular(_))));
    fs::remove_file(&path).expect("removed");
    fs::rename(&kept, &path).expect("moved back");
    fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("chmod");
    assert!(matches!(open(directory.path()), Err(StateError::Writable { .. })));
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("chmod");
    assert_eq!(payload(directory.path()).as_deref(), Some(&b"mine"[..]), "the control");
}

#[test]
fn leftover_link_of_another_hand_is_not_written_through() {
    let directory = tempfile::tempdir().expect("a directory");
    let victim = directory.path().join("victim");
    fs::write(&victim, b"precious").expect("written");
    symlink(&victim, directory.path().join(format!("{NAME}.a.new"))).expect("a link");
    stored(directory.path(), &[b"mine"]);
    assert_eq!(fs::read(&victim).expect("still there"), b"precious");
    assert_eq!(payload(directory.path()).as_deref(), Some(&b"mine"[..]));
}

/// Runs a test as root, and skips it loudly otherwise.
fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("CI").is_none(), "{test} needs root");
        eprintln!("SKIPPED {test}: it needs root");
    }
    root
}

/// A mount that goes with the value.
struct Mount(PathBuf);

impl Mount {
    fn new(arguments: &[&str], at: &Path) -> Self {
        let status = Command::new("mount").args(arguments).arg(at).status().expect("mount runs");
        assert!(status.success(), "mount {arguments:?}");
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn files_of_another_user_are_refused() {
    if !is_root("files_of_another_user_are_refused") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    stored(directory.path(), &[b"mine"]);
    let path = slot(directory.path(), "b");
    std::os::unix::fs::chown(&path, Some(65_534), None).expect("chown");
    assert!(matches!(open(directory.path()), Err(StateError::Foreign { owner: 65_534, own: 0, .. })));
    std::os::unix::fs::chown(&path, Some(0), None).expect("chown");
    assert_eq!(payload(directory.path()).as_deref(), Some(&b"mine"[..]), "the control");
    std::os::unix::fs::chown(directory.path(), Some(65_534), None).expect("chown");
    let error = open(directory.path()).expect_err("a foreign directory");
    assert_eq!((error.to_api().code.as_str(), matches!(error, StateError::Foreign { .. })), ("STATE_FOREIGN", true));
}

#[test]
fn full_disk_refuses_the_change_keeps_the_old_state_and_takes_it_once_there_is_room() {
    if !is_root("full_disk_refuses_the_change_keeps_the_old_state_and_takes_it_once_there_is_room") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk");
    fs::create_dir(&path).expect("a directory");
    let _disk = Mount::new(&["-t", "tmpfs", "-o", "size=128k,mode=0700", "tmpfs"], &path);
    let (mut slots, _) = open(&path).expect("a fresh disk");
    slots.store(b"old").expect("room");
    let filler = path.join("filler");
    let full = fs::write(&filler, vec![0; 1 << 20]).expect_err("the disk is small");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let error = slots.store(&[7; 8192]).expect_err("no room");
    assert!(matches!(&error, StateError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull));
    assert_eq!(error.to_api().code, "IO");
    assert_eq!(payload(&path).as_deref(), Some(&b"old"[..]));
    assert!(!path.join(format!("{NAME}.a.new")).exists(), "half a file takes room");
    fs::remove_file(&filler).expect("removable");
    slots.store(b"new").expect("room again");
    assert_eq!(payload(&path).as_deref(), Some(&b"new"[..]));
}

#[test]
fn read_only_disk_can_be_read_and_refuses_changes() {
    if !is_root("read_only_disk_can_be_read_and_refuses_changes") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    stored(directory.path(), &[b"old"]);
    fs::write(slot(directory.path(), "b"), b"damaged").expect("writable");
    let path = directory.path().to_owned();
    {
        let _mount = Mount::new(&["-o", "bind,ro", path.to_str().expect("text")], &path);
        let (mut slots, loaded) = open(&path).expect("readable");
        let loaded = loaded.expect("state");
        assert_eq!(&**loaded.payload, b"old");
        assert!(loaded.damage.is_some());
        let error = slots.store(b"new").expect_err("read-only");
        assert!(
            matches!(&error, StateError::Io { source, .. } if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem)
        );
    }
    assert_eq!(payload(&path).as_deref(), Some(&b"old"[..]));
    stored(&path, &[b"new"]);
    assert_eq!(payload(&path).as_deref(), Some(&b"new"[..]));
}
