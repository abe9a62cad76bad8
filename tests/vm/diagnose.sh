# A real on a stock kernel, broken in each way, and what a load balancer finds wrong with it: the guest itself is the real,
# with the kernel's own tunnels; the load balancer is a namespace behind a veth pair.

step() { echo "== $*"; }

fail() {
    echo "FAILED: $*"
    cat /tmp/check.* /tmp/diagnosis.* || true
    exit 1
}

# Ten seconds mean never.
eventually() {
    for _ in $(seq 100); do
        "$@" && return
        sleep 0.1
    done
    fail "never came true: $*"
}

in_lb() { nsenter --net=/run/netns/lb "$@"; }

listening() { netstat -ltn | grep -q ":80 " && netstat -lun | grep -q ":53 "; }

# By which kinds of checks each row is asked about (those with a port are named where that matters), and for which pairs of
# families: `alike`, or `all`, IPv4 in IPv6 too.
: "${kinds_asked:?}" "${pairs_asked:?}"

# ask KIND [OPTION…]: what the load balancer finds of the real, by one check, and by the ladder with these options.
ask() {
    kind=$1
    shift
    case $kind in
        icmp) of="--icmp" ;;
        tcp) of="--tcp 80" ;;
        udp) of="--udp 53 --require-reply" ;;
    esac
    of="--real $real --vip $vip $of --timeout 500ms -o json"
    in_lb hc-prober check $of >/tmp/check.$kind || true
    in_lb hc-prober diagnose $of "$@" >/tmp/diagnosis.$kind || true
}

# found CODE KINDS [OPTION…]: what is wrong with the real by each kind of check, and in which state that makes it.
found() {
    code=$1 kinds=$2
    shift 2
    case $code in
        OK | MTU_BLACKHOLE | MSS_TOO_BIG | ARP_LEAK) state='"state": *"UP"' ;;
        PORT_CLOSED) state='"severity": *"soft"' ;;
        *) state='"severity": *"hard"' ;;
    esac
    pids=
    for kind in $kinds; do
        ask $kind "$@" &
        pids="$pids $!"
    done
    wait $pids
    for kind in $kinds; do
        grep -q "\"code\": *\"$code\"" /tmp/diagnosis.$kind || fail "$tunnel, $kind: not $code"
        grep -q "$state" /tmp/check.$kind || fail "$tunnel, $kind: not $state"
    done
    echo "$tunnel: $code ($kinds)"
}

serve() {
    httpd -f -p 80 -h /root &
    httpd=$!
    udp_echo $udp &
    udp_echo=$!
    eventually listening
}

stop_serving() {
    kill $httpd $udp_echo
    wait $httpd $udp_echo || true
}

# Later than the tunnel's own rules, sooner than any socket.
drop() { nft add rule inet filter arrived "$@" drop; }

no_drop() { nft flush chain inet filter arrived; }

# The route that says which segments the real asks for in that family.
room() { ip -$family route replace $router dev real0 "$@"; }

step the wires
# Nothing that comes and goes by itself.
for off in accept_dad accept_ra autoconf router_solicitations; do echo 0 >/proc/sys/net/ipv6/conf/default/$off; done
for device in all default; do echo 0 >/proc/sys/net/ipv4/conf/$device/rp_filter; done
echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore
ip netns add lb
in_lb sh -c 'for off in accept_dad accept_ra autoconf; do echo 0 >/proc/sys/net/ipv6/conf/default/$off; done'
ip link add real0 type veth peer name lb0 netns lb
ip link set real0 up
ip -n lb link set lb0 up
ip -n lb link set lo up
# With room for the tunnel's header in what the real takes.
ip addr add 198.18.101.10/24 dev real0
ip addr add fd00:18:101::10/64 dev real0 nodad
ip -n lb addr add 198.18.101.1/24 dev lb0
ip -n lb addr add fd00:18:101::1/64 dev lb0 nodad
ip route add default via 198.18.101.1 advmss 1380
ip route add 198.18.101.1 dev real0 advmss 1380
ip -6 route add default via fd00:18:101::1 advmss 1380
ip -6 route add fd00:18:101::1 dev real0 advmss 1380
modprobe nf_tables
nft add table inet filter
nft add chain inet filter arrived '{ type filter hook prerouting priority 0; }'

# Each row: the fault, what is found, the fault undone.
diagnose() {
    step "$tunnel: the module is absent"
    add_vip
    serve
    found DECAP_MISSING "$kinds_asked"
    load
    found OK "$kinds_asked"

    step "$tunnel: the device is down"
    ip link set $tunnel down
    found DECAP_MISSING "$kinds_asked"
    ip link set $tunnel up

    step "$tunnel: its protocol is dropped"
    drop meta l4proto $protocol
    found DECAP_SILENT "$kinds_asked"
    no_drop

    step "$tunnel: the VIP is missing, without and with forwarding"
    del_vip
    found VIP_NOT_LOCAL "$kinds_asked"
    echo 1 >$forwarding
    found VIP_NOT_LOCAL "$kinds_asked"
    grep -q 'time exceeded' /tmp/diagnosis.tcp || fail "no word of forwarding"
    echo 0 >$forwarding
    add_vip

    step "$tunnel: the port is closed"
    stop_serving
    found PORT_CLOSED "tcp udp"
    serve

    step "$tunnel: the service is silent"
    drop tcp dport 80
    drop udp dport 53
    found SERVICE_SILENT "tcp udp"
    no_drop

    step "$tunnel: long packets are lost on the way, and nobody says so"
    drop meta l4proto $protocol meta length '>' 1450
    found MTU_BLACKHOLE "$kinds_asked"
    no_drop

    step "$tunnel: the real asks for segments that do not fit in the tunnel"
    room
    found MSS_TOO_BIG tcp
    room advmss 1380

    step "$tunnel: the real answers on its link for the VIP"
    leak
    found ARP_LEAK "$kinds_asked"
    no_leak
}

# The family of the VIP.
ipv4() {
    family=4 router=198.18.101.1 vip=198.19.10.1 udp=198.19.10.1:53 forwarding=/proc/sys/net/ipv4/ip_forward
    add_vip() { ip addr add $vip/32 dev lo; }
    del_vip() { ip addr del $vip/32 dev lo; }
    leak() { echo 0 >/proc/sys/net/ipv4/conf/all/arp_ignore; }
    no_leak() { echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore; }
}

ipv6() {
    family=6 router=fd00:18:101::1 vip=fd00:19:10::1 udp=[fd00:19:10::1]:53 forwarding=/proc/sys/net/ipv6/conf/all/forwarding
    add_vip() { ip addr add $vip/128 dev lo nodad; }
    del_vip() { ip addr del $vip/128 dev lo; }
    # Linux answers for it only on the device that has it.
    leak() { ip addr add $vip/128 dev real0 nodad; }
    no_leak() { ip addr del $vip/128 dev real0; }
}

real=198.18.101.10 tunnel=tunl0 protocol=4
load() {
    modprobe ipip
    ip link set tunl0 up
}
ipv4
diagnose

step "$tunnel: strict rp_filter, which does not find the load balancer behind the tunnel"
echo 1 >/proc/sys/net/ipv4/conf/tunl0/rp_filter
found DECAP_SILENT "$kinds_asked"
found RPF_SUSPECT "$kinds_asked" --decap-worked
echo 0 >/proc/sys/net/ipv4/conf/tunl0/rp_filter
found OK "$kinds_asked"

step "$tunnel: the host is down"
ip addr del $real/24 dev real0
found HOST_DOWN "$kinds_asked"
ip addr add $real/24 dev real0
ip -4 route add default via $router advmss 1380
stop_serving
del_vip

real=fd00:18:101::10 tunnel=ip6tnl0 protocol=41
load() {
    modprobe ip6_tunnel
    ip link set ip6tnl0 up
}
ipv6
diagnose
stop_serving
del_vip

# Of this module's own device the kernel says that it takes IPv6 only.
if [ "$pairs_asked" = all ]; then
    rmmod ip6_tunnel
    tunnel=in6 protocol=4
    load() { ip link add in6 up type ip6tnl mode any local $real remote any; }
    ipv4
    diagnose
fi

step "$tunnel: the host is down"
ip addr del $real/64 dev real0
found HOST_DOWN "$kinds_asked"
