# keepalived runs IPVS, and its MISC_CHECK is `hc-prober check`.
step keepalived
echo 'root:x:0:0:root:/root:/bin/sh' >/etc/passwd
check="/usr/bin/hc-prober check --exit-codes keepalived --vip $vip --tcp 80 --timeout 3s"
cat >/etc/keepalived.conf <<END
global_defs {
    script_user root
    enable_script_security
}
virtual_server $vip 80 {
    delay_loop 1
    lb_algo rr
    lb_kind TUN
    protocol TCP
    # Out of service until its first check.
    alpha
    real_server $real1 80 {
        MISC_CHECK {
            misc_path "$check --real $real1"
            misc_timeout 30
        }
    }
    real_server $real2 80 {
        MISC_CHECK {
            misc_path "$check --real $real2"
            misc_timeout 30
        }
    }
}
END
on director keepalived --dont-fork --check --log-console --use-file /etc/keepalived.conf >/tmp/log 2>&1 &
eventually in_service "$real1 $real2 "
answer 'real1 real2 ' || fail "not both reals answer"

step the service of one real stops: its RST takes it out
stop real1
eventually in_service "$real2 "
answer 'real2 ' || fail "another than real2 answers"

step it is back
serve real1
eventually in_service "$real1 $real2 "

step the tunnel of the other is down, and only a check through it can tell
ip -n real2 link set tunl0 down
on director curl -s -m 5 http://$real2/ || fail "real2's own address should answer"
eventually in_service "$real1 "
answer 'real1 ' || fail "another than real1 answers"

step mended
on real2 realsrv-setup apply --vip $vip --decap ipip --state-dir /tmp/real2.state
eventually in_service "$real1 $real2 "
answer 'real1 real2 ' || fail "not both reals answer"

step no check left a half-open connection
for real in real1 real2; do
    [ "$(on $real netstat -tn | grep -c SYN_RECV)" = 0 ] || fail "$real has connections in SYN_RECV"
done
