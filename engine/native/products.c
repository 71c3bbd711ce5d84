/* Products of bfloat16 rows with a matrix, on the matrix unit of a processor that has one (AMX).
 *
 * A number of the result is a sum over `inner` in steps of K_STEP, kept in float32 in one tile from
 * the first step to the last and rounded once. So it depends on its row and its column alone, not
 * on the number of rows, nor on the share of the columns that a thread takes.
 */
#include "kernels.h"
#include "threads.h"
#include "vectors.h"

/* What a tile holds of `inner`, and the columns and rows that are computed at once: 2 x 2 tiles. */
#define K_STEP 32
#define BLOCK 32
#define TILE 16
/* Numbers of the matrix in one step. */
#define STEP_NUMBERS (K_STEP * BLOCK)
/* Rows that pass by a block of columns while it lies in the second-level cache. */
#define GROUP_ROWS 256
/* Steps by which the matrix is fetched ahead where every step is used once. */
#define STEPS_AHEAD 10
/* Numbers of the matrix below which a second thread costs more than it saves. */
#define MIN_NUMBERS_OF_SHARE 131072
/* Further shares would read the rows more often than they help. */
#define SHARES_OF_THREAD 4

#if defined(__AMX_BF16__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REQUEST_PERMISSION 0x1023
#define TILE_DATA 18

/* Ask the system for the tile registers. */
int64_t tandem_can_multiply(void) { return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0; }

/* Tiles 0, 1 and 2, 3: sums of the first and of the further rows. 4, 5: their rows. 6, 7: columns. */
static void configure(int64_t num_rows) {
    struct { uint8_t palette, start_row, reserved[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } shape;
    memset(&shape, 0, sizeof shape);
    shape.palette = 1;
    const uint8_t low = num_rows < TILE ? num_rows : TILE, high = num_rows > TILE ? num_rows - TILE : TILE;
    for (int tile = 0; tile < 8; tile++) {
        shape.row_bytes[tile] = 64;
        shape.rows[tile] = tile > 5 ? K_STEP / 2 : tile == 2 || tile == 3 || tile == 5 ? high : low;
    }
    /* GCC's intrinsic tells it of the first eight bytes only. */
    __asm__ volatile("" : : "r"(&shape) : "memory");
    _tile_loadconfig(&shape);
}

static inline void fetch(const uint16_t *from, int64_t num_lines) {
    for (int64_t line = 0; line < num_lines; line++) __builtin_prefetch(from + line * 32, 0, 2);
}

/* What a block of columns meets: up to BLOCK rows. */
typedef struct {
    const uint16_t *rows, *matrix;
    /* What to fetch meanwhile: so many lines in each step. */
    const uint16_t *ahead;
    int64_t lines_ahead, num_rows;
    uint16_t *out;
    int64_t num_columns;
} meeting;

static inline void store_tile(const float *sums, uint16_t *out, int64_t stride, int64_t rows, int64_t columns) {
    for (int64_t row = 0; row < rows; row++, out += stride) {
        const half_vec bits = (half_vec)_mm512_cvtneps_pbh(*(const __m512 *)(sums + row * TILE));
        if (columns >= TILE) memcpy(out, &bits, sizeof bits);
        else memcpy(out, &bits, (size_t)columns * 2);
    }
}

static void add_up(const tandem_product *p, const meeting *m) {
    const int64_t stride = p->inner * 2, num_steps = p->inner / K_STEP;
    const uint16_t *low = m->rows, *high = m->rows + TILE * p->inner, *matrix = m->matrix, *ahead = m->ahead;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t step = 0; step < num_steps; step++) {
        _tile_loadd(4, low, stride);
        _tile_loadd(6, matrix, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, matrix + STEP_NUMBERS / 2, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (m->num_rows > TILE) {
            _tile_loadd(5, high, stride);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        fetch(ahead, m->lines_ahead);
        low += K_STEP, high += K_STEP, matrix += STEP_NUMBERS, ahead += m->lines_ahead * 32;
    }
}

static void meet(const tandem_product *p, const meeting *m) {
    _Alignas(64) float sums[4][TILE * TILE];
    add_up(p, m);
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    if (m->num_rows > TILE) {
        _tile_stored(2, sums[2], 64);
        _tile_stored(3, sums[3], 64);
    }
    for (int part = 0; part < 4; part++) {
        const int64_t row = part / 2 * TILE, column = part % 2 * TILE;
        const int64_t left = m->num_rows - row, rows = left < TILE ? left : TILE;
        if (m->num_columns > column)
            store_tile(sums[part], m->out + row * p->columns + column, p->columns, rows, m->num_columns - column);
    }
}

/* One block of columns with the rows [first, last). Returns how many rows tiles are set up for. */
static int64_t multiply_block(const tandem_product *p, int64_t block, int64_t first, int64_t last, int64_t configured) {
    const int64_t size = p->inner * BLOCK, left = p->columns - block * BLOCK;
    const int64_t num_meetings = (last - first + BLOCK - 1) / BLOCK, lines = STEP_NUMBERS / 32;
    const uint16_t *matrix = p->matrix + block * size, *ahead = matrix + STEPS_AHEAD * STEP_NUMBERS;
    /* Several meetings share the fetching of the next block. */
    int64_t lines_ahead = lines;
    if (num_meetings > 1) lines_ahead = (lines + num_meetings - 1) / num_meetings, ahead = matrix + size;
    for (int64_t row = first; row < last; row += BLOCK) {
        const int64_t num_rows = last - row < BLOCK ? last - row : BLOCK;
        if (num_rows != configured) configure(configured = num_rows);
        meeting m = {p->rows + row * p->inner, matrix, ahead, lines_ahead, num_rows,
                     p->out + row * p->columns + block * BLOCK, left < BLOCK ? left : BLOCK};
        meet(p, &m);
        if (num_meetings > 1) ahead += lines_ahead * 32 * (p->inner / K_STEP);
    }
    return configured;
}

static void multiply_share(const void *job, int64_t share, int64_t num_shares) {
    const tandem_product *p = job;
    const int64_t blocks = (p->columns + BLOCK - 1) / BLOCK;
    const int64_t first = blocks * share / num_shares, last = blocks * (share + 1) / num_shares;
    int64_t configured = 0;
    for (int64_t row = 0; row < p->num_rows; row += GROUP_ROWS) {
        const int64_t end = row + GROUP_ROWS < p->num_rows ? row + GROUP_ROWS : p->num_rows;
        for (int64_t block = first; block < last; block++)
            configured = multiply_block(p, block, row, end, configured);
    }
    _tile_release();
}

/* out = rows x matrix. */
void tandem_multiply(const tandem_product *p) {
    const int64_t most = SHARES_OF_THREAD * p->num_threads, shares = 1 + p->inner * p->columns / MIN_NUMBERS_OF_SHARE;
    tandem_in_shares(multiply_share, p, shares < most ? shares : most, p->num_threads);
}
#else
int64_t tandem_can_multiply(void) { return 0; }
void tandem_multiply(const tandem_product *p) { (void)p; }
#endif
