/* What a key's way from its device to the guest costs at least, in two processes: a byte on standard input is waited for
   by poll(2), read, and written to a socket by the first; waited for and read by the second, which writes the time,
   CLOCK_MONOTONIC in nanoseconds, to standard output. */
#include <poll.h>
#include <stdint.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int next(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char byte;

	return poll(&p, 1, -1) == 1 && read(fd, &byte, 1) == 1;
}

int main(void)
{
	int s[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, s))
		return 1;
	switch (fork()) {
	case -1:
		return 1;
	case 0:
		close(s[0]);
		while (next(s[1])) {
			struct timespec now;
			uint64_t ns;

			clock_gettime(CLOCK_MONOTONIC, &now);
			ns = (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
			if (write(1, &ns, sizeof ns) != sizeof ns)
				return 1;
		}
		return 0;
	}
	close(s[1]);
	while (next(0))
		if (write(s[0], "x", 1) != 1)
			return 1;
	return 0;
}
