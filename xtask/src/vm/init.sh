#!/bin/dash
# The guest's first process: mounts, runs /command, says its status, powers off.
export PATH=/bin HOME=/root

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf
# An emulated machine is slow to receive what it sends itself, and lo must lose nothing.
echo 100000 > /proc/sys/net/core/netdev_max_backlog
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t cgroup2 cgroup2 /sys/fs/cgroup

for module in veth tun inet_diag tcp_diag nf_tables; do
    modprobe -q "$module"
done
echo queue-trace-vm >/proc/sys/kernel/hostname
ip link set lo up
# `quiet` hides the kernel's warnings; from here on they are wanted.
echo 5 >/proc/sys/kernel/printk

cd /root || exit
/bin/dash /command </dev/null
status=$?
printf '\nVM-EXIT rc=%d\n' "$status"
vm-exit "$status"
