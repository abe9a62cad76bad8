# An IPv6 real on a stock kernel, seen by a load balancer: the guest itself is the real, with nothing loaded or configured
# before; the load balancer is a namespace behind a veth pair. Its packets come out of tunnels of its own, the answers do
# not go back through them.
real=fd00:18:101::10
lb=fd00:18:101::1
stranger=fd00:18:101::2
vip=fd00:19:10::1

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

# Ten seconds mean never.
eventually() {
    for _ in $(seq 100); do
        "$@" && return
        sleep 0.1
    done
    fail "never came true: $*"
}

listening() { netstat -ltn | grep -q ":$1 "; }

in_lb() { nsenter --net=/run/netns/lb "$@"; }

provision() { realsrv-setup "$@" --state-dir /tmp/state; }

# tunnel SOURCE OPTION…: what goes to the VIP goes through a tunnel from this source.
tunnel() {
    source=$1
    shift
    no_tunnel
    ip -n lb link add tunnel type ip6tnl mode ip6ip6 local $source remote $real "$@"
    ip -n lb link set tunnel up
    ip -n lb -6 route add $vip/128 dev tunnel src $source
}

no_tunnel() { ip -n lb link del tunnel 2>/dev/null || true; }

answered() { in_lb ping -6 -c 1 -W 5 $vip; }

unanswered() { ! in_lb ping -6 -c 1 -W 1 $vip; }

counter() { provision check | sed -n "s/^counter *$1 //p"; }

# All that remove must restore. Of the modules only the one that apply loads by name.
snapshot() {
    ip -d link
    ip addr
    ip -6 rule
    ip -6 route show table all
    tc qdisc
    tc filter show dev real0 ingress
    tc filter show dev real0 egress
    find /etc /var -type f
    lsmod | grep '^ip6_tunnel ' || true
    grep -rs . /proc/sys/net | sort
}

step the wires
# Nothing that comes and goes by itself, also on the tunnel to come; and IPv6 off where nobody turned it on.
cd /proc/sys/net/ipv6/conf/default
for off in accept_dad accept_ra autoconf router_solicitations; do echo 0 >$off; done
echo 1 >disable_ipv6
ip netns add lb
ip link add real0 type veth peer name lb0 netns lb
for device in real0 lo; do echo 0 >/proc/sys/net/ipv6/conf/$device/disable_ipv6; done
in_lb sh -c 'echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6; echo 0 >/proc/sys/net/ipv6/conf/default/disable_ipv6'
ip addr add $real/64 dev real0 nodad
ip link set real0 up
for address in $lb $stranger; do ip -n lb addr add $address/64 dev lb0 nodad; done
ip -n lb link set lb0 up
ip -n lb link set lo up
eventually in_lb ping -6 -c 1 -W 1 $real
snapshot >/tmp/before

step apply
expect 0 provision apply --vip $vip --decap ipip --lb-source $lb
lsmod | grep '^ip6_tunnel ' || fail "apply did not load ip6_tunnel"
ip -o addr show dev lo | grep -F "$vip/128" || fail "apply did not add the VIP"
expect 0 provision check
ip addr >/tmp/applied
expect 0 provision apply
ip addr | diff /tmp/applied - || fail "the second apply changed addresses"

step echoes pass through the tunnel, with and without a header of options before the inner packet
tunnel $lb encaplimit none
answered || fail "no answer through the tunnel"
tunnel $lb encaplimit 4
answered || fail "no answer through a tunnel with options"

step a request and its answer pass as well, the answer with room for the outer header
mkdir /tmp/www
echo served >/tmp/www/page
httpd -f -p "[$vip]:80" -h /tmp/www &
httpd=$!
eventually listening 80
in_lb wget -q -O - "http://[$vip]/page" | grep served || fail "no answer to a request"
kill $httpd
wait $httpd || true
[ "$(counter mss_clamped)" -ge 1 ] || fail "the MSS of the VIP was not clamped"

step others cannot tunnel, whatever they put before the inner packet
tunnel $stranger encaplimit none
unanswered || fail "a stranger was answered"
tunnel $stranger encaplimit 4
unanswered || fail "a stranger with options was answered"
# The stranger's tunnel sends reports of its own as well.
[ "$(counter bad_source)" -ge 2 ] || fail "the guard did not count two packets"

step a tunnel that somebody disabled is named by check and mended by apply
echo 1 >/proc/sys/net/ipv6/conf/ip6tnl0/disable_ipv6
expect 2 provision check
expect 0 provision apply
tunnel $lb encaplimit none
answered || fail "no answer through the mended tunnel"

step remove, while somebody else has a tunnel: then the module stays
ip link add other type ip6tnl local $real remote $lb
expect 0 provision remove
ip link del other
unanswered || fail "answered after remove"
lsmod | grep '^ip6_tunnel ' || fail "remove took a module that others use"

step remove
no_tunnel
rmmod ip6_tunnel
expect 0 provision apply --vip $vip --decap auto
ip -d link show dev ip6tnl0 | grep -q UP || fail "auto did not choose the kernel's tunnel"
expect 0 provision remove --vip $vip
lsmod | grep '^ip6_tunnel ' && fail "remove left ip6_tunnel loaded"
snapshot >/tmp/after
diff /tmp/before /tmp/after || fail "remove left differences"
