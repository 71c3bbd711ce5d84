/* Work cut into shares, and the threads that take them. */
#ifndef TANDEM_THREADS_H
#define TANDEM_THREADS_H
#include <stdint.h>

/* Computes one share of `job`; shares have nothing in common. */
typedef void share_function(const void *job, int64_t share, int64_t num_shares);

/* All shares, on so many threads where the process has a pool of them. More shares than threads make
 * up for a thread that others hold up. */
void tandem_in_shares(share_function *compute, const void *job, int64_t num_shares, int64_t num_threads);

#endif
