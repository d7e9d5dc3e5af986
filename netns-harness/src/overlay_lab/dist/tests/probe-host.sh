# Run as root inside the machine that boot.sh boots: the service beside Debian's systemd-resolved, podman and firewalld, whose packages
# lie in /package/debs or are installed. Prints PASSED at the end.
. /package/parts.sh

export DEBIAN_FRONTEND=noninteractive
set -- /package/debs/*.deb
[ ! -e "$1" ] || dpkg --force-confnew --force-depends -i "$@"

./install
standby
runuser -u overlay -- overlayctl key generate --out /var/lib/overlay/identity.key
configure
systemctl restart overlayd
wait_active
confined
for name in one two; do
    ip netns add $name
    overlayctl endpoint add --netns $name
done

# Without systemd-resolved the two lines are shown, and nothing is written.
systemctl stop systemd-resolved
rm -rf /run/systemd/resolve
printf 'nameserver 192.0.2.53\n' >/tmp/resolv.conf
rm -f /etc/resolv.conf
cp /tmp/resolv.conf /etc/resolv.conf
overlayctl dns host >/tmp/said
grep -qx 'nameserver 10.42.1.1' /tmp/said
grep -qx 'search ctr.overlay.internal' /tmp/said
cmp /tmp/resolv.conf /etc/resolv.conf

# With it, names of the overlay and no others go to the overlay's device.
# Where the machine may make no device nodes, its unit starts without directories of its own for them.
mkdir -p /etc/systemd/system/systemd-resolved.service.d
printf '[Service]\nPrivateDevices=no\n' >/etc/systemd/system/systemd-resolved.service.d/devices.conf
systemctl daemon-reload
if ! systemctl start systemd-resolved; then
    systemctl status --no-pager --full systemd-resolved
    journalctl -b --no-pager -n 30 -u systemd-resolved
    exit 1
fi
fails resolvectl query one.ctr.overlay.internal
overlayctl dns host
resolvectl query --cache=no one.ctr.overlay.internal | tee /tmp/answer
grep -q 10.42.1. /tmp/answer
grep -q fd42:0:0:1: /tmp/answer
grep -q overlay0 /tmp/answer
resolvectl query --cache=no h1.node.overlay.internal | grep -q 10.42.1.1
resolvectl domain overlay0 | grep -q '~overlay.internal'
resolvectl default-route overlay0 | grep -q no
cmp /tmp/resolv.conf /etc/resolv.conf
overlayctl dns host --undo
fails resolvectl query --cache=no one.ctr.overlay.internal
# From every start on, by the drop-in of the examples.
mkdir -p /etc/systemd/system/overlayd.service.d
sed s,/usr/bin/,/usr/local/bin/, examples/overlayd-names.conf >/etc/systemd/system/overlayd.service.d/names.conf
systemctl daemon-reload
systemctl restart overlayd
wait_active
confined
resolvectl query --cache=no two.ctr.overlay.internal | grep -q 10.42.1.
cmp /tmp/resolv.conf /etc/resolv.conf

# A real engine with the service as it is shipped.
mkdir -p /tmp/root/bin
cp /bin/busybox /tmp/root/bin/busybox
overlayctl plugin cni install
rm -rf /var/lib/containers
mkdir -p /etc/containers
cp examples/containers.conf /etc/containers/containers.conf
podman --storage-driver vfs --cgroup-manager cgroupfs run --rm --cgroups=disabled --ulimit nofile=1024:1024 \
    --ulimit nproc=512:512 --cap-add NET_RAW --network overlay --rootfs /tmp/root /bin/busybox ping -c 2 -W 2 10.42.1.4
for _ in $(seq 50); do
    test "$(overlayctl endpoint list | grep -c eth0)" -gt 2 || break
    sleep 0.1
done
test "$(overlayctl endpoint list | grep -c eth0)" = 2
overlayctl plugin cni remove

# A container keeps sending through everything that firewalls do to each other.
ip netns exec one ping -i 0.02 -W 1 10.42.1.5 >/tmp/pings 2>&1 &
pings=$!
overlayctl nat publish 7400 two:80
whole() {
    for table in overlay overlay-nat overlay-host; do nft list table inet $table >/tmp/table 2>/dev/null || return 1; done
    nft list table arp overlay >/dev/null 2>&1 && nft list table inet overlay-nat | grep -q 7400
}
# whole_after COMMAND: our tables are whole again after it, within a second and what a look and a busy machine take.
whole_after() {
    "$@"
    began=$(date +%s%N)
    until whole; do
        test $(($(date +%s%N) - began)) -lt 3000000000
        sleep 0.02
    done
    echo "whole after $((($(date +%s%N) - began) / 1000000)) ms: $*"
}
whole
whole_after nft flush ruleset
whole_after nft delete table inet overlay
whole_after systemctl start firewalld
firewall-cmd --state
# firewalld rejects what is forwarded and unknown to it; the status says so with the commands, and they help.
fails ip netns exec one ping -c 1 -W 1 10.42.1.5
for _ in $(seq 400); do
    ! overlayctl status | grep -q FORWARD_DROPPED || break
    sleep 0.1
done
overlayctl status | grep -o 'firewall-cmd.*' >/tmp/commands
cat /tmp/commands
sh -e /tmp/commands
ip netns exec one ping -c 2 -W 2 10.42.1.5
ip netns exec one ping -c 2 -W 2 10.42.1.1
# Its strict check of IPv6 sources does not know the way between two containers of one host; see docs/containerd.md.
fails ip netns exec two ping -c 1 -W 1 fd42:0:0:1::4
sed -i 's/^IPv6_rpfilter=.*/IPv6_rpfilter=no/' /etc/firewalld/firewalld.conf
firewall-cmd --reload
ip netns exec two ping -c 2 -W 2 fd42:0:0:1::4
(overlayctl doctor || true) | grep 'no other firewall drops forwarded overlay packets'
whole_after firewall-cmd --reload
whole_after firewall-cmd --complete-reload
whole_after systemctl stop firewalld
ip netns exec one ping -c 2 -W 2 10.42.1.5
kill -INT $pings
wait $pings || true
tail -n 3 /tmp/pings
overlayctl endpoint list
test "$(overlayctl endpoint list | grep -c -e '^one ' -e '^two ')" = 2
echo PASSED
