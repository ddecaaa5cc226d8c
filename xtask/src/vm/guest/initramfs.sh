#!/bin/busybox sh
# The cloud kernels have what leads to the disk as modules: load them in order, and go on from the disk.
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do /bin/busybox insmod "$module"; done
/bin/busybox mount -t ext4 -o noatime /dev/vda /mnt || /bin/busybox poweroff -f
exec /bin/busybox switch_root /mnt /usr/sbin/init
