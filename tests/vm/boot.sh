uname -r
modprobe ipip
ip -d link show dev tunl0
bpf_load_check
