//! A Debian kernel in a virtual machine on a tap: the kernel's own tunnels as a peer, without modules on this machine.
//!
//! Plain emulation boots in a few seconds and is for function only. The image (kernel and initramfs of busybox, `ip`, `wg`
//! and `ping`) is made once from Debian packages and kept under `target/qemu`.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::binaries::target_directory;
use crate::command::{ip_batch, run};
use crate::lab::Lab;
use crate::{netns, packages};

/// The underlay address of the guest.
pub const GUEST_V4: &str = "192.0.2.50";
/// How long a boot or a command may take; emulation is slow on a busy machine.
const LIMIT: Duration = Duration::from_secs(240);
/// Precedes the exit status behind the output of each command.
const MARK: &str = "@@@ ";
/// The modules the guest loads, with those they need.
const MODULES: [&str; 6] = ["virtio_pci", "virtio_net", "ipip", "sit", "ip_gre", "wireguard"];
/// The programs of this machine that the guest gets.
const PROGRAMS: [&str; 3] = ["ip", "wg", "ping"];

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run
/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
# The shell would prefer its own.
ip() { /usr/bin/ip "$@"; }
ping() { /usr/bin/ping "$@"; }
while read -r module; do insmod "/modules/$module"; done < /modules/order
ip link set lo up
ip link set eth0 up
stty -F /dev/ttyS1 raw -echo
exec < /dev/ttyS1 > /dev/ttyS1 2>&1
echo "@@@ 0"
while read -r line; do
  eval "$line"
  echo "@@@ $?"
done
poweroff -f
"#;

/// A kernel and its initramfs.
#[derive(Debug, Clone)]
pub struct Image {
    kernel: PathBuf,
    initramfs: PathBuf,
}

impl Image {
    /// The newest Debian cloud kernel, fetched and packed where that has not been done yet.
    pub fn prepare() -> Result<Image> {
        install_emulator()?;
        let directory = target_directory()?.join("qemu");
        fs::create_dir_all(&directory)?;
        let package = packages::with_lists(newest_kernel)?;
        let version = package.trim_start_matches("linux-image-").to_owned();
        let image = Image {
            kernel: directory.join(format!("vmlinuz-{version}")),
            initramfs: directory.join(format!("initramfs-{version}-{:016x}", recipe())),
        };
        if image.kernel.exists() && image.initramfs.exists() {
            return Ok(image);
        }
        let work = tempfile::tempdir_in(&directory)?;
        packages::with_lists(|| {
            run(Command::new("apt-get").args(["download", "-q", &package]).current_dir(work.path()))
        })?;
        let fetched = fs::read_dir(work.path())?.flatten().map(|entry| entry.path());
        let deb = fetched.into_iter().find(|path| path.extension().is_some_and(|it| it == "deb"));
        let deb = deb.ok_or_else(|| anyhow!("apt-get download fetched no file for {package}"))?;
        let unpacked = work.path().join("kernel");
        run(Command::new("dpkg").arg("-x").arg(&deb).arg(&unpacked))?;
        run(Command::new("depmod").arg("-b").arg(&unpacked).arg(&version))?;
        let root = work.path().join("root");
        fill(&root, &unpacked.join("lib/modules").join(&version))?;
        let packed = work.path().join("initramfs");
        let script = format!("find . | busybox cpio -o -H newc 2>/dev/null | gzip -1 > {}", packed.display());
        run(Command::new("sh").args(["-c", &script]).current_dir(&root))?;
        fs::copy(unpacked.join(format!("boot/vmlinuz-{version}")), &image.kernel)?;
        fs::rename(packed, &image.initramfs)?;
        Ok(image)
    }
}

/// A number that changes with what the initramfs is made of.
fn recipe() -> u64 {
    let mut hasher = DefaultHasher::new();
    (INIT, MODULES, PROGRAMS).hash(&mut hasher);
    hasher.finish()
}

fn install_emulator() -> Result<()> {
    let mut missing = vec!["qemu-system-x86", "busybox-static", "kmod", "iputils-ping", "wireguard-tools"];
    missing.retain(|package| !packages::installed(package));
    if missing.is_empty() {
        return Ok(());
    }
    // A newer qemu-utils (from backports) would keep the emulator out.
    let older;
    if missing.contains(&"qemu-system-x86") && packages::installed("qemu-utils") {
        let policy = run(Command::new("apt-cache").args(["policy", "qemu-system-x86"]))?;
        let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
        older = format!("qemu-utils={}", candidate.ok_or_else(|| anyhow!("no candidate for qemu-system-x86"))?);
        missing.extend(["--allow-downgrades", &older]);
    }
    packages::install(&missing)
}

/// The real package behind `linux-image-cloud-amd64`.
fn newest_kernel() -> Result<String> {
    let text = run(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]))?;
    let package = text.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.ok_or_else(|| anyhow!("apt knows no linux-image-cloud-amd64"))?;
    ensure!(package.starts_with("linux-image-"), "an unexpected dependency: {package}");
    Ok(package.to_owned())
}

/// Fills the root of the initramfs.
fn fill(root: &Path, modules: &Path) -> Result<()> {
    for directory in ["bin", "usr/bin", "modules"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    fs::write(root.join("init"), INIT)?;
    run(Command::new("chmod").arg("755").arg(root.join("init")))?;
    let mut libraries = BTreeSet::new();
    for program in PROGRAMS {
        let found = run(Command::new("sh").args(["-c", &format!("readlink -f $(command -v {program})")]))?;
        fs::copy(found.trim(), root.join("usr/bin").join(program))?;
        let linked = run(Command::new("ldd").arg(found.trim()))?;
        libraries.extend(linked.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
    }
    for library in &libraries {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().ok_or_else(|| anyhow!("{library} has no directory"))?)?;
        fs::copy(library, to)?;
    }
    let dependencies = fs::read_to_string(modules.join("modules.dep")).context("depmod wrote no modules.dep")?;
    let mut order: Vec<String> = Vec::new();
    for module in MODULES {
        let suffix = format!("/{module}.ko");
        let line = dependencies.lines().find(|line| line.split(':').next().is_some_and(|it| it.ends_with(&suffix)));
        // What is built in has no line.
        let Some((path, needed)) = line.and_then(|line| line.split_once(':')) else { continue };
        // Listed are the needed ones from the last to load to the first.
        for file in needed.split_whitespace().rev().chain([path]) {
            let name = Path::new(file).file_name().ok_or_else(|| anyhow!("no name in {file}"))?.to_string_lossy();
            if !order.iter().any(|known| *known == name) {
                fs::copy(modules.join(file), root.join("modules").join(&*name))?;
                order.push(name.into_owned());
            }
        }
    }
    fs::write(root.join("modules/order"), order.join("\n") + "\n")?;
    Ok(())
}

/// A running guest, with the underlay address [`GUEST_V4`] behind a host of a lab.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Guest {
    /// Boots the image behind a host; the host and the switch route to it.
    pub fn boot(lab: &Lab, host: &str, image: &Image) -> Result<Guest> {
        let address = lab.host(host)?.underlay_v4();
        let namespace = lab.host(host)?.view().namespace().to_owned();
        netns::within(&namespace, || netns::sysctl("net/ipv4/ip_forward", "1"))?;
        ip_batch(
            &namespace,
            &[
                "tuntap add tap0 mode tap".to_owned(),
                "link set tap0 up".to_owned(),
                format!("route add {GUEST_V4}/32 dev tap0"),
            ],
        )?;
        let hop = format!("route replace {GUEST_V4}/32 via {address} dev {host} onlink");
        ip_batch(lab.switch().namespace(), &[hop])?;
        let (kernel, initramfs) = (image.kernel.to_string_lossy(), image.initramfs.to_string_lossy());
        // Without offload, as over a wire: a checksum left to the card would never be finished between virtual ones.
        let words = format!(
            "qemu-system-x86_64 -accel tcg,thread=multi -cpu qemu64 -m 512 -display none -no-reboot -monitor none \
             -kernel {kernel} -initrd {initramfs} -serial null -serial stdio \
             -netdev tap,id=n,ifname=tap0,script=no,downscript=no -device virtio-net-pci,netdev=n,csum=off,romfile="
        );
        let mut argv: Vec<&str> = words.split_whitespace().collect();
        argv.extend(["-append", "console=ttyS0 panic=-1 quiet"]);
        let mut command = lab.command(host, &argv)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("qemu-system-x86_64 could not be started")?;
        let input = child.stdin.take().ok_or_else(|| anyhow!("qemu has no input"))?;
        let output = child.stdout.take().ok_or_else(|| anyhow!("qemu has no output"))?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned()).is_err() {
                    return;
                }
            }
        });
        let mut guest = Guest { child, input, lines };
        guest.answer().context("the guest did not boot")?;
        guest.run(&format!("ip addr add {GUEST_V4}/32 dev eth0"))?;
        guest.run(&format!("ip route add default via {address} dev eth0 onlink"))?;
        Ok(guest)
    }

    /// Runs a shell command in the guest and returns what it printed.
    pub fn run(&mut self, line: &str) -> Result<String> {
        match self.try_run(line)? {
            (0, text) => Ok(text),
            (status, text) => bail!("in the guest: {line} ended with {status}\n{text}"),
        }
    }

    /// Runs a shell command in the guest; its exit status and what it printed.
    pub fn try_run(&mut self, line: &str) -> Result<(i32, String)> {
        writeln!(self.input, "{line}").and_then(|()| self.input.flush()).context("the guest is gone")?;
        self.answer().with_context(|| format!("in the guest: {line}"))
    }

    fn answer(&mut self) -> Result<(i32, String)> {
        let end = Instant::now() + LIMIT;
        let mut text = String::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line =
                self.lines.recv_timeout(left).map_err(|_| anyhow!("no answer within {LIMIT:?}; so far:\n{text}"))?;
            if let Some((before, status)) = line.split_once(MARK) {
                text += before;
                return Ok((status.trim().parse().context("the exit status")?, text));
            }
            text += &line;
            text.push('\n');
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
