# Run as root inside the machine that boot.sh boots: install, use, crash, uninstall, compare. Prints PASSED at the end.
. /package/parts.sh

snapshot >/tmp/before
./install
standby
runuser -u overlay -- overlayctl key generate --out /var/lib/overlay/identity.key
configure
systemctl restart overlayd
confined

ip netns add one
ip netns add two
overlayctl endpoint add --netns one
overlayctl endpoint add --netns two
ip netns exec one ping -c 1 -W 2 10.42.1.1
ip netns exec one ping -c 1 -W 2 10.42.1.5
ip netns exec one ping -c 1 -W 2 fd42:0:0:1::5
systemctl restart overlayd
wait_active
ip netns exec one ping -c 1 -W 2 10.42.1.5
kill -9 "$(systemctl show --property=MainPID --value overlayd)"
sleep 0.2
wait_active
ip netns exec one ping -c 1 -W 2 fd42:0:0:1::5

# The Docker plugin: systemd holds its socket, the first call starts it, and it reaches the daemon.
plugin() {
    curl -s --max-time 5 --unix-socket /run/docker/plugins/overlayd.sock -d "$2" "http://plugin/$1"
}
fails plugin Plugin.Activate ''
overlayctl plugin docker install
if ! plugin Plugin.Activate '' >/tmp/answer; then
    systemctl status overlay-docker overlay-docker.socket --no-pager
    false
fi
grep -q IpamDriver /tmp/answer
grep -q '"10.42.1.1"' /etc/docker/daemon.json
plugin IpamDriver.RequestPool '{"AddressSpace":"overlayd"}' | grep -q '"Pool":"10.42.1.0/24"'
main=$(systemctl show --property=MainPID --value overlay-docker)
grep -q '^Seccomp:.2$' "/proc/$main/status"
grep -q '^CapBnd:.0000000000003000$' "/proc/$main/status"
overlayctl plugin docker remove
fails test -e /etc/docker/daemon.json
fails plugin Plugin.Activate ''

./install
./install --uninstall --purge
ip netns del one
ip netns del two
snapshot >/tmp/after
diff /tmp/before /tmp/after
echo PASSED
