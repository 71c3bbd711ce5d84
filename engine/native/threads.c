/* The threads are those of the OpenMP library that the tensor library has brought along: a second
 * pool would fight it for the cores. Its entry point is looked up when the kernels are loaded, so
 * that they need no OpenMP to be built. */
#include "threads.h"

#include <stdatomic.h>

typedef void fork_function(void (*run)(void *), void *data, unsigned num_threads, unsigned flags);

static fork_function *fork_threads;

typedef struct {
    share_function *compute;
    const void *job;
    int64_t num_shares;
    atomic_int_fast64_t next;
} shared_job;

/* `GOMP_parallel`, or null. */
void tandem_use_threads(fork_function *function) { fork_threads = function; }

/* However few threads come, every share is taken. */
static void take_shares(void *data) {
    shared_job *shared = data;
    int64_t share;
    while ((share = atomic_fetch_add(&shared->next, 1)) < shared->num_shares)
        shared->compute(shared->job, share, shared->num_shares);
}

void tandem_in_shares(share_function *compute, const void *job, int64_t num_shares, int64_t num_threads) {
    if (num_threads <= 1 || num_shares < 1) num_shares = 1;
    if (num_threads > num_shares) num_threads = num_shares;
    shared_job shared = {compute, job, num_shares, 0};
    if (num_threads > 1 && fork_threads)
        fork_threads(take_shares, &shared, (unsigned)num_threads, 0);
    else
        take_shares(&shared);
}
