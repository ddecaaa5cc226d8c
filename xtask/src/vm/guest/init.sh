#!/bin/busybox sh
# PID 1 of the VM: mounts, network, containerd, then the agent that runs what the host asks for.
# It says "beelet-vm: ..." on the console; the host waits for "beelet-vm: ready".
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
say() { echo "beelet-vm: $* (up $(cut -d' ' -f1 /proc/uptime) s)"; }
fail() { say "FAILED: $*"; poweroff -f; }

mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
# What udev makes elsewhere; crun reads changed resources from /dev/stdin.
ln -s /proc/self/fd /dev/fd
for n in 0/stdin 1/stdout 2/stderr; do ln -s "/proc/self/fd/${n%/*}" "/dev/${n#*/}"; done
mount -t devpts -o ptmxmode=666 pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t securityfs security /sys/kernel/security 2>/dev/null
mount -t ext4 -o ro /dev/vdb /usr/lib/modules || fail "no modules disk"
tar -x -C / -f /dev/vdc || fail "no payload disk"

# Everything but the pods is in system.slice, so that a kubelet's reservations mean something.
cgroups=/sys/fs/cgroup
mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate,memory_recursiveprot cgroup $cgroups
enable() { for c in $(cat "$1/cgroup.controllers"); do echo "+$c" > "$1/cgroup.subtree_control"; done; }
enable $cgroups
mkdir -p $cgroups/system.slice
enable $cgroups/system.slice
mkdir $cgroups/system.slice/init $cgroups/system.slice/containerd.service $cgroups/system.slice/exec
echo $$ > $cgroups/system.slice/init/cgroup.procs

modprobe -a virtio_net overlay veth bridge 2>/dev/null
hostname beelet-vm
ip link set lo up
ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && ip route add default via 10.0.2.2 || fail "no eth0"
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/vm/overcommit_memory
echo 10 > /proc/sys/kernel/panic
ulimit -n 1048576
say "system up"

(
    echo 0 > $cgroups/system.slice/containerd.service/cgroup.procs
    exec containerd > /var/log/containerd.log 2>&1
) &
(
    echo 0 > $cgroups/system.slice/exec/cgroup.procs
    while :; do
        beelet-guest vm guest-agent
        say "the command agent ended with $?"
        sleep 1
    done
) &
tries=0
until ctr version > /dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || { tail -n 20 /var/log/containerd.log; fail "containerd does not answer"; }
    sleep 0.2
done
say "ready"
# The shell reaps whatever is orphaned while it waits.
while :; do wait; sleep 5; done
