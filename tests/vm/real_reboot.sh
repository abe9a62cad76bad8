# A real across a reboot, in two guests: the first is provisioned with --persist and writes its disk to its output, the
# second has that as /disk. There is no systemd in a guest: the second does what systemd would with the files, in its
# order. The load balancer is a namespace behind a veth pair.
real=198.18.101.10
lb=198.18.101.1
vip=198.19.10.1
unit=/etc/systemd/system/realsrv-setup.service

step() { echo "== $*"; }

fail() { echo "FAILED: $*"; exit 1; }

answered() { nsenter --net=/run/netns/lb hc-prober check --real $real --vip $vip --icmp --timeout "$1"; }

network() {
    ip netns add lb
    ip link add real0 type veth peer name lb0 netns lb
    ip addr add $real/24 dev real0
    ip link set real0 up
    ip -n lb addr add $lb/24 dev lb0
    ip -n lb link set lb0 up
}

if [ ! -e /disk ]; then
    step first boot: apply
    network
    mkdir -p /etc/systemd/system/multi-user.target.wants /etc/modules-load.d /etc/sysctl.d
    realsrv-setup apply --vip $vip --decap ipip --lb-source $lb --persist
    answered 5s || fail "no answer after apply"
    step disk
    tar -C / -c etc var/lib/realsrv-setup | base64
    exit
fi

base64 -d /disk | tar -C / -x
step second boot: modules and settings
xargs -n 1 modprobe <"/etc/modules-load.d/realsrv-setup.conf"
while read -r name _ value; do echo "$value" >"/proc/sys/$name"; done <"/etc/sysctl.d/90-realsrv-setup.conf"
[ "$(cat /proc/sys/net/ipv4/conf/all/arp_ignore)" = 1 ] || fail "ARP is not silent before the network is there"
network
answered 1s && fail "answered before the unit has run"

step the unit that multi-user.target wants
cmp "$unit" "${unit%/*}/multi-user.target.wants/${unit##*/}" || fail "the unit is not enabled"
sh -c "$(sed -n 's/^ExecStart=//p' $unit)"
answered 5s || fail "no answer after boot"
realsrv-setup check

step remove
realsrv-setup remove
answered 1s && fail "answered after remove"
! find /etc /var/lib -name '*realsrv-setup*' ! -type d | grep . || fail "remove left files"
