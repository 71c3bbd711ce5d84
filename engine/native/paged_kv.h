/* Keys and values of a paged pool: where they lie, and how a tile of work takes them in. */
#ifndef TANDEM_PAGED_KV_H
#define TANDEM_PAGED_KV_H
#include "kernels.h"
#include "vectors.h"

#define SPLIT 256
#define MAX_HEAD_DIM 256
/* Rows that share loads; a row is computed with its three neighbours, or with zeros. */
#define MAX_ROWS 32
#define ROWS 4
#define HIDDEN -1.0e30f

/* What one tile computes: some query tokens of one sequence, or one each of sequences that begin
 * alike, for some KV heads. A block holds the heads of a group side by side, so that a tile of one
 * token takes all of them, and no others, and reads memory in order. */
typedef struct {
    const tandem_step *step;
    const tandem_layer *layer;
    const int64_t *table;
    /* `count` query tokens: from `token` on, the first at `position`, or, where it is not null, these. */
    int64_t token, position, count;
    const int64_t *members;
    /* Keys to go through; those before the first are in the states of the step. */
    int64_t first_key, last_key;
    int64_t first_head, num_heads;
    /* Of each head, from where the keys of a layer begin. */
    int64_t head_offsets[MAX_ROWS / ROWS];
    /* Rows of each head in the tile, a multiple of ROWS. */
    int rows_of_head;
} tile_view;

typedef struct {
    _Alignas(64) float query[MAX_ROWS][MAX_HEAD_DIM];
    _Alignas(64) float scores[MAX_ROWS][SPLIT];
    _Alignas(64) float out[MAX_ROWS][MAX_HEAD_DIM];
    _Alignas(64) float columns[MAX_HEAD_DIM][LANES];
    _Alignas(64) float values[LANES][MAX_HEAD_DIM];
    float highest[MAX_ROWS], weight[MAX_ROWS];
    int64_t position[MAX_ROWS];
} tile;

/* Rows become columns. */
static inline void transpose(uvec rows[LANES]) {
#define STAGE(width, ...)                                                      \
    for (int i = 0; i < LANES; i++) {                                          \
        if (i & width) continue;                                               \
        uvec low = rows[i], high = rows[i + width];                            \
        rows[i] = __builtin_shufflevector(low, high, __VA_ARGS__);             \
        rows[i + width] = SECOND_##width(low, high);                           \
    }
#define SECOND_1(a, b) __builtin_shufflevector(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31)
#define SECOND_2(a, b) __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define SECOND_4(a, b) __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31)
#define SECOND_8(a, b) __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
    STAGE(1, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30)
    STAGE(2, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
    STAGE(4, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)
    STAGE(8, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#undef STAGE
}

static inline int64_t head_offset(const tandem_step *s, int64_t head) {
    return head / s->heads_of_group * s->group_stride + head % s->heads_of_group * s->head_stride;
}

/* Where the keys of LANES positions from `first` on lie, counted in numbers; each head's after its
 * head_offset, values after to_values. Positions from `last` on repeat the one before. */
static void key_offsets(const tile_view *view, int64_t first, int64_t last, int64_t offsets[LANES]) {
    const tandem_step *s = view->step;
    const int64_t layer = view->layer->layer * s->layer_stride;
    int64_t index = first / s->block_size, in_block = first % s->block_size;
    int64_t offset = view->table[index] * s->block_stride + layer + in_block * s->head_dim;
    for (int t = 0; t < LANES; t++) {
        offsets[t] = offset;
        if (first + t + 1 >= last) continue;
        if (++in_block < s->block_size) {
            offset += s->head_dim;
        } else {
            in_block = 0;
            offset = view->table[++index] * s->block_stride + layer;
        }
    }
}

/* tile->columns[d][t]: keys of LANES positions, turned round. */
static void load_keys(const tile_view *view, const int64_t offsets[LANES], int64_t further, tile *tile) {
    const int64_t dim = view->step->head_dim;
    int64_t d = 0;
    if (view->step->is_bfloat16) {
        const uint16_t *pool = (const uint16_t *)view->step->pool + further;
        for (; d + 2 * LANES <= dim; d += 2 * LANES) {
            uvec pairs[LANES];
            for (int t = 0; t < LANES; t++) memcpy(&pairs[t], pool + offsets[t] + d, sizeof(uvec));
            transpose(pairs);
            for (int i = 0; i < LANES; i++) {
                *(uvec *)tile->columns[d + 2 * i] = pairs[i] << 16;
                *(uvec *)tile->columns[d + 2 * i + 1] = pairs[i] & 0xffff0000u;
            }
        }
        for (; d < dim; d++)
            for (int t = 0; t < LANES; t++) tile->columns[d][t] = bfloat16_to_float(pool[offsets[t] + d]);
        return;
    }
    const float *pool = (const float *)view->step->pool + further;
    for (; d + LANES <= dim; d += LANES) {
        uvec rows[LANES];
        for (int t = 0; t < LANES; t++) memcpy(&rows[t], pool + offsets[t] + d, sizeof(uvec));
        transpose(rows);
        for (int i = 0; i < LANES; i++) *(uvec *)tile->columns[d + i] = rows[i];
    }
    for (; d < dim; d++)
        for (int t = 0; t < LANES; t++) tile->columns[d][t] = pool[offsets[t] + d];
}

static void load_values(const tile_view *view, const int64_t offsets[LANES], int64_t further, tile *tile) {
    const tandem_step *s = view->step;
    for (int t = 0; t < LANES; t++) {
        if (s->is_bfloat16) {
            const uint16_t *row = (const uint16_t *)s->pool + offsets[t] + further;
            uint32_t *into = (uint32_t *)tile->values[t];
            for (int64_t d = 0; d < s->head_dim; d++) into[d] = (uint32_t)row[d] << 16;
        } else {
            memcpy(tile->values[t], (const float *)s->pool + offsets[t] + further, (size_t)s->head_dim * 4);
        }
    }
}

#endif
