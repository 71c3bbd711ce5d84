/* The threads are those of the OpenMP library that the tensor library has brought along: a second
 * pool would fight it for the cores. Its entry point is looked up when the kernels are loaded, so
 * that they need no OpenMP to be built. */
#define _GNU_SOURCE
#include "threads.h"

#include <sched.h>
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

typedef struct {
    const int64_t *cores;
    int64_t num_cores;
    atomic_int_fast64_t next;
    atomic_int_fast64_t num_kept;
} core_list;

/* Once on each thread. */
static void keep_to_next_core(void *data) {
    core_list *list = data;
    int64_t place = atomic_fetch_add(&list->next, 1);
    if (place >= list->num_cores) return;
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET((int)list->cores[place], &only);
    if (sched_setaffinity(0, sizeof only, &only) == 0) atomic_fetch_add(&list->num_kept, 1);
}

/* Keeps the calling thread and the others of its pool to one core each; how many now are. */
int64_t tandem_keep_threads_to_cores(const int64_t *cores, int64_t num_cores) {
    core_list list = {cores, num_cores, 0, 0};
    if (num_cores > 1 && fork_threads)
        fork_threads(keep_to_next_core, &list, (unsigned)num_cores, 0);
    return list.num_kept;
}
