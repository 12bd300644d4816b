#!/bin/busybox sh
# The lab's initramfs: loads the disk driver, mounts the three disks, hands systemd the lab's units
# and gets out of the way. Whatever fails says so in one line on the console and ends the machine,
# so that nobody waits for a guest that will not come.

/bin/busybox mkdir -p /proc /sys /dev /run /sysroot
/bin/busybox --install -s /bin
export PATH=/bin

die() {
    echo "memtide-lab: init: $1" > /dev/console
    # Time for the console to drain: power-off does not wait for it.
    sleep 1
    poweroff -f
}

mount -t devtmpfs dev /dev || die "cannot mount /dev"
mount -t proc proc /proc || die "cannot mount /proc"
mount -t sysfs sys /sys || die "cannot mount /sys"

option() { # The value of NAME=VALUE on the kernel command line.
    sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" /proc/cmdline
}

if [ -n "$(option memtide.probe)" ]; then
    echo "memtide-lab: this machine runs a stock kernel" > /dev/console
    poweroff -f
fi

for module in /modules/*.ko; do
    insmod "$module" || die "cannot load $module"
done

disk() { # The device whose serial number is $1, waiting a little for slow probing.
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        for block in /sys/block/vd*; do
            if [ "$(cat "$block/serial" 2> /dev/null)" = "$1" ]; then
                echo "/dev/${block##*/}"
                return
            fi
        done
        sleep 0.2
    done
}

attach() { # serial, options, mount point
    device=$(disk "$1")
    [ -n "$device" ] || die "there is no disk with serial number $1"
    mkdir -p "$3" || die "cannot make $3"
    mount -t ext4 -o "$2" "$device" "$3" || die "cannot mount $1 ($device) on $3"
}

attach memtide-root rw,noatime /sysroot
attach memtide-modules ro /sysroot/usr/lib/modules
attach memtide-tools ro /sysroot/opt/memtide

# Units go where systemd looks for those of this boot only: the image stays as Debian made it.
mount -t tmpfs -o mode=755 run /run || die "cannot mount /run"
units=/run/systemd/system
wants=$units/multi-user.target.wants
mkdir -p "$wants"
cp /units/*.service "$units/"
for unit in $(cat /units/enabled); do
    ln -s "../$unit" "$wants/$unit"
done
for unit in $(cat /units/masked); do
    ln -s /dev/null "$units/$unit"
done

# Generators find disks, consoles and encryption that a lab guest does not have: two seconds under
# emulation. The one that is kept reads systemd.mask= and systemd.wants= off the command line.
mkdir -p /run/systemd/system-generators
for generator in /sysroot/usr/lib/systemd/system-generators/*; do
    case $generator in
        */systemd-debug-generator) ;;
        *) ln -s /dev/null "/run/systemd/system-generators/${generator##*/}" ;;
    esac
done

tools=/sysroot/opt/memtide/units
if [ -d "$tools" ]; then
    for unit in "$tools"/*; do
        [ "${unit##*/}" = enabled ] || cp -r "$unit" "$units/"
    done
fi
if [ -f "$tools/enabled" ]; then
    while read -r unit; do
        case $unit in
            '' | '#'*) ;;
            *)
                [ -e "$units/$unit" ] || [ -e "/sysroot/usr/lib/systemd/system/$unit" ] ||
                    die "units/enabled names $unit, which does not exist"
                ln -s "../$unit" "$wants/$unit"
                ;;
        esac
    done < "$tools/enabled"
fi

for module in $(option memtide.modules | tr , ' '); do
    chroot /sysroot /sbin/modprobe "$module" || die "cannot load $module"
done

for mount in proc sys dev run; do
    mount --move /$mount /sysroot/$mount || die "cannot move /$mount"
done
exec switch_root /sysroot /sbin/init
die "cannot start systemd"
