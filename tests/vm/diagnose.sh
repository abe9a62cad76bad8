# A real on a stock kernel, broken in each way, and what a load balancer finds wrong with it: the guest itself is the real,
# with the kernel's own tunnels; the load balancer is a namespace behind a veth pair.

step() { echo "== $*"; }

fail() {
    echo "FAILED: $*"
    cat /tmp/diagnosis || true
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

listening() { netstat -ltn | grep -q ":80 "; }

# found CODE [OPTION…]: what is wrong with the real, as the load balancer sees it.
found() {
    code=$1
    shift
    in_lb hc-prober diagnose --real $real --vip $vip --tcp 80 --timeout 500ms -o json "$@" >/tmp/diagnosis || true
    grep -q "\"code\": *\"$code\"" /tmp/diagnosis || fail "$tunnel: not $code"
    echo "$tunnel: $code"
}

serve() {
    httpd -f -p 80 -h /root &
    httpd=$!
    eventually listening
}

# Later than the tunnel's own rules, sooner than any socket.
drop() { nft add rule inet filter arrived "$@" drop; }

no_drop() { nft flush chain inet filter arrived; }

load() {
    modprobe $module
    ip link set $tunnel up
}

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
ip route add default via 198.18.101.1 advmss 1400
ip route add 198.18.101.1 dev real0 advmss 1400
ip -6 route add default via fd00:18:101::1 advmss 1380
ip -6 route add fd00:18:101::1 dev real0 advmss 1380
modprobe nf_tables
nft add table inet filter
nft add chain inet filter arrived '{ type filter hook prerouting priority 0; }'
serve

# Each row: the fault, what is found, the fault undone.
diagnose() {
    step "$tunnel: the module is absent"
    add_vip
    found DECAP_MISSING
    load
    found OK

    step "$tunnel: the device is down"
    ip link set $tunnel down
    found DECAP_MISSING
    ip link set $tunnel up

    step "$tunnel: its protocol is dropped"
    drop meta l4proto $protocol
    found DECAP_SILENT
    no_drop

    step "$tunnel: the VIP is missing, without and with forwarding"
    del_vip
    found VIP_NOT_LOCAL
    echo 1 >$forwarding
    found VIP_NOT_LOCAL
    grep -q 'time exceeded' /tmp/diagnosis || fail "no word of forwarding"
    echo 0 >$forwarding
    add_vip

    step "$tunnel: the port is closed"
    kill $httpd
    wait $httpd || true
    found PORT_CLOSED
    serve

    step "$tunnel: the service is silent"
    drop tcp dport 80
    found SERVICE_SILENT
    no_drop

    step "$tunnel: long packets are lost on the way, and nobody says so"
    drop meta l4proto $protocol meta length '>' 1450
    found MTU_BLACKHOLE
    no_drop
}

real=198.18.101.10 vip=198.19.10.1 tunnel=tunl0 module=ipip protocol=4
forwarding=/proc/sys/net/ipv4/ip_forward
add_vip() { ip addr add $vip/32 dev lo; }
del_vip() { ip addr del $vip/32 dev lo; }
diagnose

step "$tunnel: strict rp_filter, which does not find the load balancer behind the tunnel"
echo 1 >/proc/sys/net/ipv4/conf/tunl0/rp_filter
found DECAP_SILENT
found RPF_SUSPECT --decap-worked
echo 0 >/proc/sys/net/ipv4/conf/tunl0/rp_filter
found OK

step "$tunnel: the host is down"
ip addr del $real/24 dev real0
found HOST_DOWN

real=fd00:18:101::10 vip=fd00:19:10::1 tunnel=ip6tnl0 module=ip6_tunnel protocol=41
forwarding=/proc/sys/net/ipv6/conf/all/forwarding
add_vip() { ip addr add $vip/128 dev lo nodad; }
del_vip() { ip addr del $vip/128 dev lo; }
diagnose

step "$tunnel: the host is down"
ip addr del $real/64 dev real0
found HOST_DOWN
