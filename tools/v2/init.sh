#!/bin/busybox sh
# The first process of the machine, from its initramfs. Makes a root file system from the host's and goes over to it.
#
# The host's files come read-only over virtiofs, below an overlay in memory. /usr and /var/tmp are ext4 disks, as on most
# machines: neither virtiofs nor an overlay can be mounted with other ids, and an overlay holds no loop devices well.
set -eu
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
trap 'echo "the machine could not be set up"; poweroff -f' EXIT

while read -r module; do insmod "/modules/$module"; done </modules/order
mkdir -p /host /changes /new
mount -t virtiofs -o ro host /host
mount -t tmpfs -o size=512m tmpfs /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work overlay /new
mount -t ext4 -o ro /dev/vda /new/usr
mount -t ext4 /dev/vdb /new/var/tmp
chmod 1777 /new/var/tmp
for place in tmp run; do mount -t tmpfs -o size=512m tmpfs "/new/$place"; done
chmod 1777 /new/tmp
# What is to be seen may lie below a place that was just covered.
shown=$(sed -n 's/.*fairwater.shown=\([^ ]*\).*/\1/p' /proc/cmdline)
number=0
for path in $(echo "$shown" | tr : ' '); do
    [ -e "/new$path/." ] && continue
    number=$((number + 1))
    mkdir -p "/new$path" "/changes/shown$number/upper" "/changes/shown$number/work"
    mount -t overlay -o "lowerdir=/host$path,upperdir=/changes/shown$number/upper,workdir=/changes/shown$number/work" \
        overlay "/new$path"
done
for place in proc sys dev; do mount --move "/$place" "/new/$place"; done
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts -o ptmxmode=666 devpts /new/dev/pts
mount -t tmpfs tmpfs /new/dev/shm
mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /new/sys/fs/cgroup
cp /bin/busybox /commands.sh /new/run/
trap - EXIT
exec switch_root /new /run/busybox sh /run/commands.sh
