# Beside another load balancer: IPVS in tunnelling mode. The guest itself routes between the client, the director and two
# reals, each a namespace with an address of its own; the VIP is on the director's lo, as IPVS wants it.
vip=198.19.10.1
real1=198.18.101.10
real2=198.18.102.10
director=198.18.221.11

step() { echo "== $*"; }

fail() {
    echo "FAILED: $*"
    ipvs -Ln || true
    tail -n 30 /tmp/log || true
    exit 1
}

# Each check begins by loading a BPF program, which takes an emulated CPU seconds.
eventually() {
    for _ in $(seq 100); do
        "$@" && return
        sleep 0.2
    done
    fail "never came true: $*"
}

on() {
    host=$1
    shift
    nsenter --net="/run/netns/$host" "$@"
}

host() { # NAME ADDRESS
    subnet=${2%.*}
    ip netns add "$1"
    ip link add "to-$1" type veth peer name eth0 netns "$1"
    ip addr add "$subnet.1/24" dev "to-$1"
    ip link set "to-$1" up
    ip -n "$1" addr add "$2/24" dev eth0
    ip -n "$1" link set lo up
    ip -n "$1" link set eth0 up
    ip -n "$1" route add default via "$subnet.1"
}

provision() { on "$1" realsrv-setup apply --vip $vip --decap ipip --state-dir "/tmp/$1.state"; }

serve() { # REAL
    mkdir -p "/tmp/$1"
    echo "$1" >"/tmp/$1/index.html"
    # Not by `on`, whose shell would be what $! names.
    nsenter --net="/run/netns/$1" httpd -f -p 80 -h "/tmp/$1" &
    echo $! >"/tmp/$1.pid"
}

stop() {
    kill "$(cat "/tmp/$1.pid")"
    wait "$(cat "/tmp/$1.pid")" || true
}

ipvs() { on director ipvsadm "$@"; }

# The reals that the director sends new connections to, in order.
in_service() { [ "$(ipvs -Ln | awk '/Tunnel/ && $4 > 0 { sub(":80", "", $2); print $2 }' | sort | tr '\n' ' ')" = "$1" ]; }

# Who answers eight requests, each once.
answer() { [ "$(for _ in 1 2 3 4 5 6 7 8; do on client curl -s -m 5 http://$vip/ || echo none; done | sort -u | tr '\n' ' ')" = "$1" ]; }

step the network
echo 1 >/proc/sys/net/ipv4/ip_forward
host client 198.18.10.10
host director $director
host real1 $real1
host real2 $real2
ip route add $vip via $director
ip -n director addr add $vip/32 dev lo
modprobe ip_vs_rr
for real in real1 real2; do
    provision $real
    serve $real
done

