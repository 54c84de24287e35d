// Package vault keeps the appliance's state encrypted: LUKS2, by cryptsetup, which the kernel's dm-crypt reads and writes.
//
// A passphrase opens it (key slot 0). A TPM does too (key slot 1): it gives its key out only to a kernel that was started by an image
// whose measurement was signed, so that an update does not lock anybody out and another image does not get in. What the TPM
// needs for it is in a token of the LUKS header.
//
// Sources: LUKS2 On-Disk Format Specification 1.1; TPM 2.0 Library, Part 3; systemd-stub(7) for where an image's signatures are.
package vault
