// Package image builds what the end-to-end tests run: the file systems of the
// simulated notebook and the Debian guests in it, from Debian's archive and from
// packages installed on this machine.
//
// Each result is a directory of the cache, named by a hash of all that went into
// it: the recipe in this package, the versions of the packages it copies from,
// and the results it builds upon. A result is made beside its place and renamed
// into it when it is whole, so it is complete or absent. Nothing needs root;
// without it, files that must belong to root are made so by fakeroot.
//
//	debian-ARCH    network     root.tar by mmdebstrap, and the kernel's package
//	kernel-ARCH    debian      vmlinuz, vmlinux, lib/modules
//	guest-ARCH     all above   disk.img (ext4), initrd
//	notebook       all above   disk.img (ext4, read-only use), initrd
//
// Guests are Debian 12's kernel and user land as packaged, with files/guest laid
// over them: sysvinit's inittab with a boot script of ours in place of the rc
// scripts, because every process that a guest starts costs an emulated CPU dearly.
package image
