# Nobody but `hc-prober run` changes the weights of an IPVS service.
step the service, of whose reals none is in service
ipvs -A -t $vip:80 -s rr
for real in $real1 $real2; do
    ipvs -a -t $vip:80 -r $real:80 -i -w 0
done
cat >/etc/hc-prober.toml <<END
[on_change]
command = ["ipvsadm", "-e", "{ipvs_protocol}", "{service}", "-r", "{server}", "-i", "-w", "{weight}"]
[defaults]
interval = "1s"
[[vip]]
address  = "$vip"
protocol = "tcp"
port     = 80
check    = { kind = "tcp" }
  [[vip.real]]
  address = "$real1"
  weight  = 100
  [[vip.real]]
  address = "$real2"
  weight  = 7
END
nsenter --net=/run/netns/director hc-prober run --config /etc/hc-prober.toml >/tmp/changes 2>/tmp/log &
sidecar=$!
eventually in_service "$real1 $real2 "
ipvs -Ln | grep -q "$real2:80 *Tunnel *7 " || fail "real2 has another weight than the file's"
answer 'real1 real2 ' || fail "not both reals answer"

step the service of one real stops
stop real1
eventually in_service "$real2 "
answer 'real2 ' || fail "another than real2 answers"
grep "$real1" /tmp/changes | tail -n 1 | grep -q '"reason":"PORT_CLOSED"' || fail "the line is not there: $(cat /tmp/changes)"

step the tunnel of the other is down, and mended
ip -n real2 link set tunl0 down
eventually in_service ""
ip -n real2 link set tunl0 up
eventually in_service "$real2 "

step it ends, and leaves everything as it is
kill $sidecar
wait $sidecar || fail "hc-prober ended with $?"
in_service "$real2 " || fail "the weights changed at the end"
