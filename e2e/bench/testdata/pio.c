/* The peer of the figure "port I/O exit": as little as a VMM can do. It makes the machine that exits.go makes, whose
 * guest writes to a port for ever, takes as many exits as its argument says and prints the mean in microseconds. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

enum { ROM_SIZE = 64 << 10 };

static int check(int r, const char *what)
{
	if (r < 0) {
		perror(what);
		exit(1);
	}
	return r;
}

static void run(int vcpu, struct kvm_run *state, long n)
{
	while (n-- > 0) {
		check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
		if (state->exit_reason != KVM_EXIT_IO) {
			fprintf(stderr, "exit %u instead of a port\n", state->exit_reason);
			exit(1);
		}
	}
}

int main(int argc, char **argv)
{
	static const unsigned char code[] = { 0xba, 0x58, 0x56, 0xee, 0xeb, 0xfd }; /* mov dx, 0x5658; out dx, al; jmp to the out */
	long n = argc > 1 ? atol(argv[1]) : 1000;
	int kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	unsigned char *rom = mmap(NULL, ROM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (rom == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	memset(rom, 0xf4, ROM_SIZE);
	memcpy(rom + ROM_SIZE - 16, code, sizeof code);
	struct kvm_userspace_memory_region slot = {
		.guest_phys_addr = 0x100000000 - ROM_SIZE, .memory_size = ROM_SIZE, .userspace_addr = (unsigned long)rom,
	};
	check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY_REGION");
	check(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
	int vcpu = check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	int size = check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	struct kvm_run *state = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);

	if (state == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	run(vcpu, state, n / 10); /* as warm as ours */
	struct timespec a, b;
	clock_gettime(CLOCK_MONOTONIC, &a);
	run(vcpu, state, n);
	clock_gettime(CLOCK_MONOTONIC, &b);
	printf("%.4f\n", ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / 1e3 / n);
	return 0;
}
