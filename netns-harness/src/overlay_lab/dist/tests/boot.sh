# Boots the systemd of this machine in namespaces of its own: boot.sh WORK. The root is an overlay over `/` that is thrown
# away; WORK/package is seen inside as /package, and its probe.sh is run and may power off. Needs root.
set -e
work=$1
mount --make-rprivate /
mount -t tmpfs tmpfs "$work/guest"
mkdir "$work/guest/upper" "$work/guest/work" "$work/guest/root"
root=$work/guest/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/guest/upper,workdir=$work/guest/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
for directory in run tmp dev; do mount -t tmpfs tmpfs "$root/$directory"; done
mkdir -p "$root/dev/pts" "$root/dev/net" "$root/package"
for node in null zero full random urandom tty net/tun; do cp -a "/dev/$node" "$root/dev/$node"; done
# As udev does.
chmod 0666 "$root/dev/net/tun"
ln -s /proc/self/fd "$root/dev/fd"
mount --bind "$work/package" "$root/package"
rm -rf "$root"/etc/systemd/system/*.wants "$root/etc/overlay" "$root/var/lib/overlay"
cat >"$root/etc/systemd/system/probe.service" <<'UNIT'
[Unit]
Requires=basic.target
After=basic.target
[Service]
Type=oneshot
ExecStart=/bin/sh /package/probe.sh
ExecStopPost=/usr/bin/systemctl poweroff --force --force
StandardOutput=file:/package/result
StandardError=file:/package/result
UNIT
hostname overlayd-probe
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    chroot "$root" /lib/systemd/systemd --system --unit=probe.service --show-status=no
