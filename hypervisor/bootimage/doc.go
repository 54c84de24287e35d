// Package bootimage makes what a notebook starts Lodge from: an initramfs, a unified kernel image (UKI), a disk image with an EFI
// system partition (ESP), and a flash image. It needs neither root nor programs of the machine, and the same inputs give the same
// bytes.
//
// An ESP holds two slots, of which the boot manager (systemd-boot) takes the newer one and falls back to the other if that does not
// come up; Update, Rollback and MarkGood change them so that a power cut at any moment leaves one that boots.
//
// Specifications: the UAPI group's Unified Kernel Image and Boot Loader Specification; systemd's Automatic Boot Assessment for
// the counters; UEFI 2.10; the Platform Initialization Specification 1.8, volume 3, for firmware volumes.
package bootimage
