/*
 * Preloaded into the daemon: counts what threads named "ringfence-ring" ask of the C library's
 * allocator, whoever asks on their behalf, into the first eight bytes of the file that
 * COUNT_ALLOCATIONS_IN names.
 *
 * The calls go on to glibc by its own internal names, since dlsym itself allocates.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *old, size_t bytes);
extern void *__libc_memalign(size_t alignment, size_t bytes);
extern void __libc_free(void *memory);

static _Atomic unsigned long *counter;

/* A thread is named right after it starts: who has another name by then is not the ring. */
#define CALLS_UNTIL_NAMED 64
static __thread int is_ring __attribute__((tls_model("initial-exec")));
static __thread int calls __attribute__((tls_model("initial-exec")));

__attribute__((constructor)) static void open_counter(void)
{
	const char *path = getenv("COUNT_ALLOCATIONS_IN");
	int file = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
	if (file < 0)
		return;
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	close(file);
	if (page != MAP_FAILED)
		counter = page;
}

static void note(void)
{
	if (counter == NULL)
		return;
	if (!is_ring) {
		if (calls >= CALLS_UNTIL_NAMED)
			return;
		calls += 1;
		char name[16] = "";
		prctl(PR_GET_NAME, name, 0, 0, 0);
		if (strcmp(name, "ringfence-ring") != 0)
			return;
		is_ring = 1;
	}
	atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

void *malloc(size_t bytes)
{
	note();
	return __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes)
{
	note();
	return __libc_calloc(count, bytes);
}

void *realloc(void *old, size_t bytes)
{
	note();
	return __libc_realloc(old, bytes);
}

void *memalign(size_t alignment, size_t bytes)
{
	note();
	return __libc_memalign(alignment, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes)
{
	note();
	return __libc_memalign(alignment, bytes);
}

int posix_memalign(void **memory, size_t alignment, size_t bytes)
{
	note();
	*memory = __libc_memalign(alignment, bytes);
	return *memory == NULL ? ENOMEM : 0;
}

void free(void *memory)
{
	note();
	__libc_free(memory);
}
