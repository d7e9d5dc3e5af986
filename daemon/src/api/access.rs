//! Who may do what on the control socket, from the credentials the kernel reports for the other end.
//!
//! Root and the daemon's own user may change; so may members of the group `overlay-admin`. Members of the group
//! `overlay` may look. The kernel reports a caller's primary group only, so further groups are looked up by user in
//! `/etc/group`, at each connection: a change of groups needs no restart.

use std::fs;
use std::path::{Path, PathBuf};

/// The group whose members may change.
const ADMIN_GROUP: &str = "overlay-admin";
/// The group whose members may look; it owns the socket file.
const READ_GROUP: &str = "overlay";
/// The largest group or user file read, in bytes.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Right {
    /// Nothing.
    None,
    /// Look.
    Read,
    /// Look and change.
    Change,
}

/// Who is at the other end, as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    /// User id.
    pub(crate) uid: u32,
    /// Primary group id.
    pub(crate) gid: u32,
    /// Process id, where known.
    pub(crate) pid: Option<i32>,
}

/// The rules.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    own_uid: u32,
    passwd: PathBuf,
    group: PathBuf,
}

impl Access {
    /// The rules of a daemon that runs as `own_uid`.
    pub(crate) fn new(own_uid: u32) -> Self {
        Self { own_uid, passwd: "/etc/passwd".into(), group: "/etc/group".into() }
    }

    /// The rules with other user and group files.
    #[cfg(test)]
    pub(crate) fn with_files(own_uid: u32, passwd: PathBuf, group: PathBuf) -> Self {
        Self { own_uid, passwd, group }
    }

    /// What a caller may do.
    pub(crate) fn right(&self, caller: Caller) -> Right {
        if caller.uid == 0 || caller.uid == self.own_uid {
            return Right::Change;
        }
        let (groups, users) = (read(&self.group), read(&self.passwd));
        let user = user_name(&users, caller.uid);
        if is_member(&groups, ADMIN_GROUP, caller.gid, user) {
            Right::Change
        } else if is_member(&groups, READ_GROUP, caller.gid, user) {
            Right::Read
        } else {
            Right::None
        }
    }

    /// The group that owns the socket file, where it exists.
    pub(crate) fn socket_gid(&self) -> Option<u32> {
        let groups = read(&self.group);
        let line = groups.lines().find(|line| line.split(':').next() == Some(READ_GROUP))?;
        line.split(':').nth(2)?.parse().ok()
    }
}

fn read(path: &Path) -> String {
    // Without the file nobody is in any group, which is the safe side.
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() <= MAX_FILE_BYTES => fs::read_to_string(path).unwrap_or_default(),
        _ => String::new(),
    }
}

/// The name of a user id in passwd(5) text.
fn user_name(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

/// Whether a user is in a group of group(5) text, by primary group id or by name.
fn is_member(groups: &str, group: &str, gid: u32, user: Option<&str>) -> bool {
    groups.lines().any(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(group) {
            return false;
        }
        let same_gid = fields.nth(1).is_some_and(|text| text.parse() == Ok(gid));
        let listed = |members: &str| members.split(',').any(|member| !member.is_empty() && Some(member) == user);
        same_gid || fields.next().is_some_and(listed)
    })
}
