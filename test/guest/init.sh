#!/bin/busybox sh
# First process of the test guest. The host's root, shared read-only, gets a layer of memory on
# top, so that every program of the host is there; commands then come in over the second serial
# line (agent.sh). Whatever fails here shows on the console, which the tests print.
/bin/busybox mkdir -p /proc /sys /dev /host /layer /guest
/bin/busybox --install -s /bin
export PATH=/bin
set -e
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do
  insmod "/modules/$module.ko"
done
mount -t virtiofs host /host
mount -t tmpfs -o size=1g layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /guest
for filesystem in proc sys dev; do
  mount --move "/$filesystem" "/guest/$filesystem"
done
mkdir -p /guest/dev/shm /guest/run /guest/mnt
mount -t tmpfs shm /guest/dev/shm
mount -t tmpfs run /guest/run
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
cp /agent.sh /guest/run/agent.sh
exec chroot /guest /bin/sh /run/agent.sh
