// Package notebook runs a whole notebook with virtualisation hardware on a
// machine that has none: QEMU emulates a computer with an AMD processor and its
// nested-virtualisation extension, Debian's kernel boots in it and offers a real
// /dev/kvm, and the program under test runs unmodified guests through that.
//
// The notebook boots once for each configuration; its state is kept in the
// cache of package image, and every Start resumes from that state in about a
// second. A notebook's disks are overlays that are dropped by Close, so that all
// tests begin alike. Commands are run by an agent inside, over a virtio-serial
// port that is a socket pair here: see package rpc.
//
// One notebook runs at a time on a machine, for it uses every processor.
//
//	nb, err := notebook.Start(ctx, notebook.Config{
//		Tools: map[string]string{"bin/lodge-vmm": "bin/lodge-vmm"},
//	})
//	...
//	defer nb.Close()
//	out, err := nb.Shell(ctx, "lodge-vmm check /tools/guest.toml")
//
// Inside are /guests/ARCH/{vmlinux,vmlinuz,initrd}, the guests' disks as
// /disk/ARCH, the files of Config.Tools under /tools (with /tools/bin in PATH),
// /dev/kvm, /dev/net/tun and, as the peer to compare with, qemu-system-x86_64.
package notebook
