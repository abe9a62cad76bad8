# A real on a stock kernel, seen by a load balancer: the guest itself is the real, with nothing loaded or configured
# before; the load balancer is a namespace behind a veth pair.
real=198.18.101.10
lb=198.18.101.1
vip=198.19.10.1

step() { echo "== $*"; }

fail() { echo "FAILED: $*"; exit 1; }

# expect STATUS COMMAND…
expect() {
    wanted=$1
    shift
    status=0
    "$@" || status=$?
    [ "$status" -eq "$wanted" ] || fail "exit $status where $wanted was due: $*"
}

# The services write a line each, or listen, within a moment; ten seconds mean never.
eventually() {
    for _ in $(seq 100); do
        "$@" && return
        sleep 0.1
    done
    fail "never came true: $*"
}

listening() { netstat -ltn | grep -q ":$1 "; }

probe() { nsenter --net=/run/netns/lb hc-prober check --real $real --vip $vip --timeout 5s "$@"; }

provision() { realsrv-setup "$@" --state-dir /tmp/state; }

# All that remove must restore. Of the modules only the one that apply loads by name.
snapshot() {
    ip -d link
    ip addr
    ip rule
    ip route show table all
    tc qdisc
    tc filter show dev real0 ingress
    tc filter show dev real0 egress
    find /sys/fs/bpf
    find /etc /var -type f
    lsmod | grep '^ipip ' || true
    grep -rs . /proc/sys/net | sort
}

step the wires
ip netns add lb
ip link add real0 type veth peer name lb0 netns lb
# A link-local address would turn from tentative to valid between two snapshots.
echo 1 >/proc/sys/net/ipv6/conf/real0/disable_ipv6
ip addr add $real/24 dev real0
ip link set real0 up
ip -n lb addr add $lb/24 dev lb0
ip -n lb link set lb0 up
snapshot >/tmp/before

step apply
expect 0 provision apply --vip $vip --decap ipip --lb-source $lb
lsmod | grep '^ipip ' || fail "apply did not load ipip"
ip -o addr show dev lo | grep -F "$vip/32" || fail "apply did not add the VIP"
expect 0 provision check --vip $vip --decap ipip
ip addr >/tmp/applied
expect 0 provision apply --vip $vip --decap ipip
ip addr | diff /tmp/applied - || fail "the second apply changed addresses"

step every check passes through the tunnel
httpd -f -p $vip:80 -h /root &
httpd=$!
udp_echo $vip:53 >/tmp/udp_echo &
udp_echo=$!
eventually listening 80
eventually grep -q bound /tmp/udp_echo
expect 0 probe --icmp
expect 0 probe --tcp 80
expect 0 probe --udp 53 --require-reply

step the services stop: a RST, a port unreachable, and a VIP that still answers
kill $httpd $udp_echo
wait $httpd $udp_echo || true
expect 2 probe --tcp 80
expect 2 probe --udp 53
expect 0 probe --icmp

step remove
expect 0 provision remove --vip $vip
expect 2 probe --icmp
expect 2 probe --tcp 80
lsmod | grep '^ipip ' && fail "remove left ipip loaded"
snapshot >/tmp/after
diff /tmp/before /tmp/after || fail "remove left differences"
