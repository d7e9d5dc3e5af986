# Shared by the probes that run inside the machine that boot.sh boots.
set -eux
PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
cd /package

snapshot() {
    ip -d -o link | grep -v '^[0-9]*: lo' || true
    ip -o -4 address
    ip -o -6 address show scope global
    ip -4 route show table all
    ip -6 route show table all | grep -v fe80 || true
    ip rule
    ip -6 rule
    nft list ruleset
    cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding
    getent passwd overlay || true
    find /usr/local /etc/overlay /etc/sysctl.d /etc/sysusers.d /etc/systemd/system /var/lib/overlay /run/overlay 2>/dev/null | sort
}

wait_active() {
    for _ in $(seq 100); do
        ! systemctl is-active --quiet overlayd || ! overlayctl status >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    systemctl status --no-pager overlayd
    exit 1
}

# `!` would not end the script.
fails() {
    if "$@"; then exit 1; fi
}

# Without a configuration it waits for init or join, and touches nothing.
standby() {
    for _ in $(seq 100); do
        code=0
        overlayctl status >/dev/null 2>&1 || code=$?
        [ $code != 8 ] || return 0
        sleep 0.1
    done
    exit 1
}

configure() {
    cat >/etc/overlay/overlayd.toml <<'CONFIG'
[node]
name = "h1"
prefixes = ["10.42.1.0/24", "fd42:0:0:1::/64"]
[overlay]
cluster = "probe"
pool = ["10.42.0.0/16", "fd42::/48"]
CONFIG
}

# Own user, exactly two capabilities (12 and 13), filtered system calls, no new privileges.
confined() {
    main=$(systemctl show --property=MainPID --value overlayd)
    test "$(stat -c %U "/proc/$main")" = overlay
    for set in Prm Eff Bnd Amb; do grep -q "^Cap$set:.0000000000003000$" "/proc/$main/status"; done
    grep -q '^Seccomp:.2$' "/proc/$main/status"
    grep -q '^NoNewPrivs:.1$' "/proc/$main/status"
    test "$(stat -c '%U %a' /run/overlay/overlayd.sock)" = 'overlay 660'
}

ip link set lo up
