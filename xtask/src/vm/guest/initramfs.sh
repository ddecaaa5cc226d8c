#!/bin/busybox sh
# The cloud kernels have virtio_blk as a module: load it, and go on from the disk.
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox insmod /virtio_blk.ko
/bin/busybox mount -t ext4 -o noatime /dev/vda /mnt || /bin/busybox poweroff -f
exec /bin/busybox switch_root /mnt /usr/sbin/init
