# The program in the flash image that starts the UKI there. loader.bin is this, assembled (a test holds that):
#   as --64 -o loader.o loader.S && objcopy -O binary -j .text loader.o loader.bin
# It is position-independent; registers and calls are those of UEFI 2.10 §2.3.4 (rcx, rdx, r8, r9, stack; rsi, rdi, rbx are kept).

	.intel_syntax noprefix
	.set	ROM, 0xff000000		# the flash image is the last 16 MiB below 4 GiB
	.set	HEADER, 0x1000		# its header: magic (8 bytes), size of the UKI (8 bytes); the UKI comes behind
	.set	CON_OUT, 0x40		# EFI_SYSTEM_TABLE
	.set	BOOT_SERVICES, 0x60
	.set	OUTPUT_STRING, 0x08	# EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL
	.set	LOAD_IMAGE, 0xc8	# EFI_BOOT_SERVICES
	.set	START_IMAGE, 0xd0

	.text
entry:	push	rbx
	push	rsi
	sub	rsp, 0x48
	mov	rbx, rdx		# system table
	mov	rsi, rcx		# our image handle
	mov	edx, ROM
	mov	rax, [rip + magic]
	cmp	rax, [rdx]
	lea	rdx, [rip + absent]
	jne	fail
	mov	edx, ROM
	mov	rax, [rdx + 8]
	mov	[rsp + 0x20], rax	# SourceSize
	lea	rax, [rsp + 0x30]
	mov	[rsp + 0x28], rax	# ImageHandle
	mov	r9d, ROM + HEADER	# SourceBuffer
	lea	r8, [rip + path]	# DevicePath
	mov	rdx, rsi		# ParentImageHandle
	xor	ecx, ecx		# BootPolicy
	mov	rax, [rbx + BOOT_SERVICES]
	call	[rax + LOAD_IMAGE]
	lea	rdx, [rip + refused]
	test	rax, rax
	jnz	fail
	mov	rcx, [rsp + 0x30]
	xor	edx, edx
	xor	r8d, r8d
	mov	rax, [rbx + BOOT_SERVICES]
	call	[rax + START_IMAGE]
	lea	rdx, [rip + ended]
fail:	mov	rcx, [rbx + CON_OUT]
	call	[rcx + OUTPUT_STRING]
	mov	eax, 14			# EFI_NOT_FOUND: the firmware goes on with the next option
	bts	rax, 63
	add	rsp, 0x48
	pop	rsi
	pop	rbx
	ret

magic:	.ascii	"LODGEUKI"
path:	.byte	1, 3			# hardware, memory mapped
	.2byte	24
	.4byte	11			# EfiMemoryMappedIO
	.8byte	ROM + HEADER, 0xffbfffff
	.byte	0x7f, 0xff		# end
	.2byte	4
	.balign	2
absent:	.string16 "Lodge: there is no boot image in the flash\r\n"
refused: .string16 "Lodge: the firmware refuses the boot image in the flash: is it signed for Secure Boot?\r\n"
ended:	.string16 "Lodge: the boot image in the flash has ended\r\n"
