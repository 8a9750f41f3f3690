# The first process of the machine, once its root file system stands: runs the commands that come by the channel, one
# after another. A command is a line of base64, a shell script; its end is told by a mark of the machine's own and its
# exit status.
busybox=/run/busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
for word in $($busybox cat /proc/cmdline); do
    case $word in
        fairwater.mark=*) mark=${word#*=} ;;
        fairwater.seconds=*) seconds=${word#*=} ;;
    esac
done
# Whatever becomes of the host's side: the machine ends by itself.
($busybox sleep "$seconds" && $busybox poweroff -f) &
# What udev and systemd do on other machines.
modprobe -a loop tun
$busybox ip link set lo up
$busybox hostname fairwater-v2

# As a service under systemd has it, commands run in a group of their own, and not in the root of the tree.
mkdir -p /sys/fs/cgroup/system.slice/commands.service
for name in /sys/class/virtio-ports/*; do channel=/dev/${name##*/}; done
exec 3<>"$channel"
echo "$mark ready" >&3
while read -r line <&3; do
    echo "$line" | $busybox base64 -d >/run/command
    (
        echo 0 >/sys/fs/cgroup/system.slice/commands.service/cgroup.procs
        exec /bin/sh /run/command
    ) </dev/null >&3 2>&3
    printf '\n%s %d\n' "$mark" $? >&3
done
$busybox poweroff -f
