use super::*;
use crate::setup::Kernel;
use crate::text::shell_line;

fn files() -> Files {
    Files {
        vmlinuz: "/c/vmlinuz".into(),
        initramfs: "/c/initramfs".into(),
        root: "/c/root".into(),
        modules: "/c/modules".into(),
        tools: "/run/a,b/tools".into(),
        serial_log: "/a/serial.log".into(),
    }
}

fn spec() -> MachineSpec {
    MachineSpec::new("guest", Kernel::V7_3, "/tools", "/artifacts")
}

fn line(spec: &MachineSpec) -> String {
    shell_line(&qemu(spec, Engine::Tcg, &files(), Sockets { monitor: 7, guest: 9 }))
}

#[test]
fn the_whole_line_of_a_plain_machine() {
    let expected = "-name guest -machine q35,memory-backend=mem \
        -object memory-backend-memfd,id=mem,size=1073741824,share=on -m size=1024M -smp 2 \
        -accel tcg,thread=multi -cpu max -nodefaults -no-user-config -display none \
        -vga none -no-reboot -kernel /c/vmlinuz -initrd /c/initramfs -serial file:/a/serial.log \
        -append 'console=ttyS0 panic=-1 quiet systemd.show_status=0 \
        systemd.unit=multi-user.target lsm=landlock,lockdown,yama,integrity,apparmor' \
        -drive if=none,id=memtide-root,format=raw,cache=unsafe,snapshot=on,file=/c/root \
        -device virtio-blk-pci,drive=memtide-root,serial=memtide-root \
        -drive if=none,id=memtide-modules,format=raw,cache=unsafe,readonly=on,file=/c/modules \
        -device virtio-blk-pci,drive=memtide-modules,serial=memtide-modules \
        -drive if=none,id=memtide-tools,format=raw,cache=unsafe,readonly=on,file=/run/a,,b/tools \
        -device virtio-blk-pci,drive=memtide-tools,serial=memtide-tools \
        -chardev socket,id=qmp,fd=7 -qmp chardev:qmp \
        -device virtio-serial-pci,id=ports -chardev socket,id=runner,fd=9 \
        -device virtserialport,bus=ports.0,chardev=runner,name=org.memtide.lab";
    assert_eq!(line(&spec()), expected);
}

#[test]
fn a_counted_clock_needs_one_thread_for_all_processors() {
    let sockets = Sockets { monitor: 7, guest: 9 };
    let counted = shell_line(&qemu(&spec(), Engine::Counted, &files(), sockets));
    let expected = "-smp 2 -accel tcg,thread=single -icount shift=0,sleep=on -cpu max ";
    assert!(counted.contains(expected), "{counted}");
}

#[test]
fn a_vhost_user_balloon_is_the_generic_device_with_our_shape() {
    let balloon = Balloon::VhostUser { socket: "/run/x.sock".into() };
    let line = line(&MachineSpec { balloon, ..spec() });
    assert!(line.contains("-chardev socket,id=balloon,path=/run/x.sock"), "{line}");
    let device = "-device vhost-user-test-device-pci,chardev=balloon,virtio-id=5,num_vqs=6,\
                  vq_size=128,config_size=64";
    assert!(line.contains(device), "{line}");
    assert!(line.contains("memtide.modules=virtio_balloon"), "{line}");
}

#[test]
fn memory_may_come_from_huge_pages_or_a_file_and_a_reset_may_boot_anew() {
    let huge = line(&MachineSpec { backing: Backing::HugeMemfd, ..spec() });
    let expected = "memory-backend-memfd,id=mem,size=1073741824,share=on,hugetlb=on,hugetlbsize=2M";
    assert!(huge.contains(expected), "{huge}");
    let file = Backing::FileIn("/dev/shm".into());
    let file = line(&MachineSpec { backing: file, on_reset: OnReset::Boots, ..spec() });
    let expected = "memory-backend-file,id=mem,size=1073741824,share=on,mem-path=/dev/shm ";
    assert!(file.contains(expected), "{file}");
    assert!(!file.contains("-no-reboot"), "{file}");
}

#[test]
fn what_the_caller_adds_comes_last_and_so_wins() {
    let spec = MachineSpec {
        max_memory_mib: Some(4096),
        balloon: Balloon::Qemu,
        modules: vec!["zram".to_owned()],
        kernel_arguments: vec!["memory_hotplug.memmap_on_memory=1".to_owned()],
        qemu_arguments: vec!["-device".to_owned(), "virtio-rng-pci".to_owned()],
        ..spec()
    };
    let line = line(&spec);
    assert!(line.contains("-m size=1024M,slots=8,maxmem=4096M"), "{line}");
    assert!(line.contains("-device virtio-balloon-pci,free-page-reporting=on"), "{line}");
    assert!(line.ends_with("-device virtio-rng-pci"), "{line}");
    assert!(kernel(&spec).contains("memtide.modules=zram,virtio_balloon "));
    assert!(kernel(&spec).ends_with("memory_hotplug.memmap_on_memory=1"));
}

#[test]
fn a_console_brings_a_terminal_of_the_right_size() {
    let spec = MachineSpec { console: Console::Terminal { rows: 40, columns: 120 }, ..spec() };
    let line = line(&spec);
    assert!(line.contains("-device virtconsole,bus=ports.0,chardev=terminal"), "{line}");
    assert!(kernel(&spec).contains("memtide.shell=1 systemd.tty.rows.hvc0=40"));
}
