# Run as root inside the machine that boot.sh boots: the Debian package by dpkg, through install, use, upgrade, removal,
# installation over what was kept, and purge. Prints PASSED at the end.
. /package/parts.sh

# Everything but what dpkg and systemd write for themselves.
files() {
    find /etc /usr /var/lib -xdev \( -path /var/lib/dpkg -o -path /var/lib/systemd \) -prune -o -printf '%M %u %g %p\n' |
        grep -v -e ' /etc/[a-z]*-$' -e ' /etc/.pwd.lock$' | sort
    getent passwd
    getent group
}

# A card that listens to router advertisements must go on doing so with forwarding on.
accept_ra() {
    test "$(cat /proc/sys/net/ipv6/conf/card/accept_ra)" = "$1"
}
ip link add card type veth peer name other
accept_ra 1

snapshot >/tmp/before
files >/tmp/files-before

dpkg -i overlayd_*.deb
systemctl is-enabled overlayd
test "$(cat /proc/sys/net/ipv4/ip_forward)" = 1
accept_ra 2
# The control of the comparisons below.
files >/tmp/files
fails cmp -s /tmp/files-before /tmp/files

standby
runuser -u overlay -- overlayctl key generate --out /var/lib/overlay/identity.key
configure
systemctl restart overlayd
confined
ip netns add one
ip netns add two
overlayctl endpoint add --netns one
overlayctl endpoint add --netns two
ip netns exec one ping -c 1 -W 2 10.42.1.5

# The same package once more is an upgrade: the daemon is another, the containers go on.
first=$(systemctl show --property=MainPID --value overlayd)
dpkg -i overlayd_*.deb
wait_active
test "$first" != "$(systemctl show --property=MainPID --value overlayd)"
ip netns exec one ping -c 1 -W 2 fd42:0:0:1::5

# Removed: programs, service and everything on the network; configuration and state stay.
dpkg -r overlayd
ip netns del one
ip netns del two
test ! -e /usr/bin/overlayd
fails systemctl is-active overlayd
test -s /etc/overlay/overlayd.toml
test -s /var/lib/overlay/identity.key
getent passwd overlay
accept_ra 1
snapshot | grep -v -e '^overlay:' -e overlay/ -e '/overlay$' >/tmp/after
diff /tmp/before /tmp/after

# Installed over what was kept, it runs at once.
dpkg -i overlayd_*.deb
wait_active

accept_ra 2

dpkg --purge overlayd
accept_ra 1
snapshot >/tmp/after
diff /tmp/before /tmp/after
files >/tmp/files-after
diff /tmp/files-before /tmp/files-after
fails dpkg -s overlayd
echo PASSED
