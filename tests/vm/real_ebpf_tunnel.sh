# The eBPF decapsulator on a stock kernel, under what a kernel's own tunnel sends: large segments that are still whole
# (GSO), in each of the three ways one family can carry another. The guest is the real, the load balancer is a namespace
# behind a veth pair.
real=198.18.101.10 real6=fd00:18:101::10
lb=198.18.101.1 lb6=fd00:18:101::1
vip=198.19.10.1 vip6=fd00:19:10::1

step() { echo "== $*"; }

fail() { echo "FAILED: $*"; exit 1; }

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

counter() { provision check | sed -n "s/^counter *$1 //p"; }

# via KIND VIP SOURCE, the kind with its ends and options: what goes to the VIP goes through a tunnel of this kind.
via() {
    kind=$1 to=$2 from=$3
    ip -n lb link del tunnel 2>/dev/null || true
    # Word splitting is meant.
    ip -n lb link add tunnel type $kind
    ip -n lb link set tunnel up
    ip -n lb route add $to dev tunnel src $from
}

# upload HOST: half a megabyte, written at once, must arrive as it was sent.
upload() {
    rm -f /tmp/received
    in_lb timeout 30 wget -q -O - --post-file /tmp/sent "http://$1/cgi-bin/take" | grep taken || fail "the upload to $1 hung"
    cmp /tmp/sent /tmp/received || fail "the upload to $1 did not arrive as it was sent"
}

step the wires
ip netns add lb
ip link add real0 type veth peer name lb0 netns lb
ip addr add $real/24 dev real0
ip addr add $real6/64 dev real0 nodad
ip -n lb addr add $lb/24 dev lb0
ip -n lb addr add $lb6/64 dev lb0 nodad
ip link set real0 up
ip -n lb link set lb0 up
eventually in_lb ping -6 -c 1 -W 1 $real6
# wget sends text only.
base64 /dev/urandom | head -c 500000 >/tmp/sent
mkdir -p /tmp/www/cgi-bin
cat >/tmp/www/cgi-bin/take <<'CGI'
#!/usr/bin/sh
cat >/tmp/received
printf 'Content-Type: text/plain\r\n\r\ntaken\n'
CGI
chmod +x /tmp/www/cgi-bin/take
httpd -f -p 80 -h /tmp/www &
httpd=$!
eventually listening 80

step apply
provision apply --vip $vip,$vip6 --decap ebpf --lb-source $lb,$lb6

step IPv4 in IPv4
via "ipip local $lb remote $real" $vip/32 $lb
upload $vip

step IPv6 in IPv6
via "ip6tnl mode ip6ip6 local $lb6 remote $real6 encaplimit none" $vip6/128 $lb6
upload "[$vip6]"

step IPv4 in IPv6
via "ip6tnl mode ipip6 local $lb6 remote $real6 encaplimit none" $vip/32 $lb
upload $vip

step the large ones were decapsulated whole
packets=$(counter decapsulated)
# 1,500,000 octets are more than 1,000 segments.
echo "$packets packets decapsulated"
[ "$packets" -gt 0 ] && [ "$packets" -lt 300 ] || fail "$packets packets: no large ones were among them"
[ "$(counter failed)" -eq 0 ] && [ "$(counter malformed)" -eq 0 ] || fail "not all were decapsulated"
provision remove
kill $httpd
