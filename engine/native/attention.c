/* Attention over paged KV on a CPU, for one row of a batch at a time.
 *
 * Every row (a query token and a head) goes through the same operations in the same order, whatever
 * else is in the batch: scores of 16 keys at a time, the softmax joined after every SPLIT keys
 * counted from the start of the sequence, values added key by key. Rows share the loads of keys and
 * values, nothing else. No reassociation: compile without -ffast-math.
 */
#include "vectors.h"

#define SPLIT 256
#define MAX_HEAD_DIM 256
/* Rows that share loads; a row is computed with its three neighbours, or with zeros. */
#define MAX_ROWS 32
#define ROWS 4
#define HIDDEN -1.0e30f

typedef struct {
    void *pool; /* [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim] */
    int64_t is_bfloat16;
    int64_t num_layers, num_kv_heads, block_size, head_dim, group_size;
    int64_t num_seqs, num_tokens;
    const int64_t *starts;       /* [num_seqs] position of the first query token */
    const int64_t *num_queries;  /* [num_seqs] */
    const int64_t *block_tables; /* [num_seqs, table_width] */
    int64_t table_width;
    const int64_t *slot_mapping; /* [num_tokens] block * block_size + offset */
} tandem_step;

typedef struct {
    int64_t layer;
    float scale;
    float softcap;          /* 0: none */
    int64_t sliding_window; /* 0: none */
    /* [num_tokens, heads, head_dim] float32, tokens this many numbers apart */
    const float *query, *key, *value;
    int64_t query_stride, key_stride, value_stride;
    float *out; /* [num_tokens, num_heads, head_dim], contiguous */
} tandem_layer;

/* What one tile computes: some query tokens of one sequence, for some KV heads. A block holds its
 * heads side by side, so that a tile of one token takes all of them and reads memory in order. */
typedef struct {
    const tandem_step *step;
    const tandem_layer *layer;
    const int64_t *table;
    int64_t first_head, num_heads;
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

static inline int64_t head_stride(const tandem_step *s) { return s->block_size * s->head_dim; }
static inline int64_t to_values(const tandem_step *s) { return s->num_kv_heads * head_stride(s); }

/* Where the keys of LANES positions from `first` on lie for the first head, counted in numbers.
 * Further heads follow after head_stride, values after to_values. Positions from `last` on repeat
 * the one before. */
static void key_offsets(const tile_view *view, int64_t first, int64_t last, int64_t offsets[LANES]) {
    const tandem_step *s = view->step;
    const int64_t block_stride = s->num_layers * 2 * to_values(s);
    const int64_t head = view->layer->layer * 2 * to_values(s) + view->first_head * head_stride(s);
    int64_t index = first / s->block_size, in_block = first % s->block_size;
    int64_t offset = view->table[index] * block_stride + head + in_block * s->head_dim;
    for (int t = 0; t < LANES; t++) {
        offsets[t] = offset;
        if (first + t + 1 >= last) continue;
        if (++in_block < s->block_size) {
            offset += s->head_dim;
        } else {
            in_block = 0;
            offset = view->table[++index] * block_stride + head;
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

/* Scores of four rows against LANES keys; even and odd dimensions are summed apart. */
static inline void score_rows(const tile *tile, int64_t dim, int row, vec scores[ROWS]) {
    vec even[ROWS], odd[ROWS];
    for (int r = 0; r < ROWS; r++) even[r] = odd[r] = splat(0.0f);
    int64_t d = 0;
    for (; d + 2 <= dim; d += 2) {
        vec first = *(const vec *)tile->columns[d], second = *(const vec *)tile->columns[d + 1];
        for (int r = 0; r < ROWS; r++) {
            even[r] += tile->query[row + r][d] * first;
            odd[r] += tile->query[row + r][d + 1] * second;
        }
    }
    if (d < dim)
        for (int r = 0; r < ROWS; r++) even[r] += tile->query[row + r][d] * *(const vec *)tile->columns[d];
    for (int r = 0; r < ROWS; r++) scores[r] = even[r] + odd[r];
}

static void score_split(const tile_view *view, tile *tile, int64_t first, int64_t last) {
    const tandem_step *s = view->step;
    const int32_t window = (int32_t)view->layer->sliding_window;
    const float cap = view->layer->softcap;
    int64_t offsets[LANES];
    ivec lane;
    for (int t = 0; t < LANES; t++) lane[t] = t;
    for (int64_t group = 0; first + group < last; group += LANES) {
        key_offsets(view, first + group, last, offsets);
        ivec position = lane + (int32_t)(first + group);
        for (int64_t head = 0; head < view->num_heads; head++) {
            load_keys(view, offsets, head * head_stride(s), tile);
            int row = (int)head * view->rows_of_head, end = row + view->rows_of_head;
            for (; row < end; row += ROWS) {
                vec scores[ROWS];
                score_rows(tile, s->head_dim, row, scores);
                for (int r = 0; r < ROWS; r++) {
                    vec score = scores[r];
                    /* cap * tanh(score / cap) */
                    if (cap != 0.0f) score = cap - 2.0f * cap / (exp_of(score * (2.0f / cap)) + 1.0f);
                    int32_t seen = (int32_t)tile->position[row + r];
                    ivec hidden = position > seen;
                    if (window) hidden |= position <= seen - window;
                    *(vec *)&tile->scores[row + r][group] = pick(hidden, splat(HIDDEN), score);
                }
            }
        }
    }
}

/* Join the scores of a split into a row's softmax: scores become weights. */
static void weigh_row(tile *tile, int row, int64_t padded, int64_t dim) {
    vec best = splat(HIDDEN);
    for (int64_t t = 0; t < padded; t += LANES) {
        vec s = *(vec *)&tile->scores[row][t];
        best = pick(s > best, s, best);
    }
    float highest = tile->highest[row];
    for (int t = 0; t < LANES; t++) highest = best[t] > highest ? best[t] : highest;
    if (highest <= HIDDEN) {
        /* Nothing of this split is seen, and nothing was before; or what is seen is not a number. */
        for (int64_t t = 0; t < padded; t += LANES) {
            vec *s = (vec *)&tile->scores[row][t];
            *s = pick(*s <= HIDDEN, splat(0.0f), *s);
        }
        return;
    }
    if (highest != tile->highest[row]) {
        float factor = exp_of(splat(tile->highest[row] - highest))[0];
        tile->weight[row] *= factor;
        for (int64_t d = 0; d < dim; d++) tile->out[row][d] *= factor;
        tile->highest[row] = highest;
    }
    vec sum = splat(0.0f);
    for (int64_t t = 0; t < padded; t += LANES) {
        vec *s = (vec *)&tile->scores[row][t];
        *s = exp_of(*s - highest);
        sum += *s;
    }
    float total = 0.0f;
    for (int t = 0; t < LANES; t++) total += sum[t];
    tile->weight[row] += total;
}

/* out[row] += weight of each key * its value, key by key, for four rows and `vectors` * LANES
 * dimensions from `d` on. */
#define ADD_VALUES(vectors)                                                                       \
    static inline void add_values_##vectors(tile *tile, int row, int64_t group, int64_t d) {      \
        vec sums[ROWS][vectors];                                                                  \
        for (int r = 0; r < ROWS; r++)                                                            \
            for (int v = 0; v < vectors; v++) sums[r][v] = *(vec *)&tile->out[row + r][d + v * LANES]; \
        for (int t = 0; t < LANES; t++)                                                           \
            for (int v = 0; v < vectors; v++) {                                                   \
                vec value = *(vec *)&tile->values[t][d + v * LANES];                              \
                for (int r = 0; r < ROWS; r++) sums[r][v] += tile->scores[row + r][group + t] * value; \
            }                                                                                     \
        for (int r = 0; r < ROWS; r++)                                                            \
            for (int v = 0; v < vectors; v++) *(vec *)&tile->out[row + r][d + v * LANES] = sums[r][v]; \
    }
ADD_VALUES(4)
ADD_VALUES(1)

static void add_split(const tile_view *view, tile *tile, int64_t first, int64_t last) {
    const tandem_step *s = view->step;
    const int64_t dim = s->head_dim;
    int64_t offsets[LANES];
    for (int64_t group = 0; first + group < last; group += LANES) {
        key_offsets(view, first + group, last, offsets);
        for (int64_t head = 0; head < view->num_heads; head++) {
            load_values(view, offsets, to_values(s) + head * head_stride(s), tile);
            int row = (int)head * view->rows_of_head, end = row + view->rows_of_head;
            for (; row < end; row += ROWS) {
                int64_t d = 0;
                for (; d + 4 * LANES <= dim; d += 4 * LANES) add_values_4(tile, row, group, d);
                for (; d < dim; d += LANES) add_values_1(tile, row, group, d);
            }
        }
    }
}

/* Rows of a head: its query heads, token by token, then zeros up to a multiple of ROWS. */
static void begin_tile(const tile_view *view, tile *tile, int64_t token, int64_t position, int64_t count) {
    const tandem_step *s = view->step;
    const int64_t dim = s->head_dim, group = s->group_size, padded_dim = (dim + LANES - 1) / LANES * LANES;
    for (int row = 0; row < view->num_heads * view->rows_of_head; row++) {
        int64_t head = view->first_head + row / view->rows_of_head, in_head = row % view->rows_of_head;
        int64_t of_token = in_head < count * group ? in_head / group : count - 1;
        const float *query = view->layer->query + (token + of_token) * view->layer->query_stride +
                             (head * group + in_head % group) * dim;
        for (int64_t d = 0; d < dim; d++)
            tile->query[row][d] = in_head < count * group ? query[d] * view->layer->scale : 0.0f;
        tile->position[row] = position + of_token;
        tile->highest[row] = HIDDEN, tile->weight[row] = 0.0f;
        memset(tile->out[row], 0, (size_t)padded_dim * 4);
    }
}

static void end_tile(const tile_view *view, const tile *tile, int64_t token, int64_t count) {
    const tandem_step *s = view->step;
    const int64_t dim = s->head_dim, group = s->group_size, num_heads = group * s->num_kv_heads;
    for (int64_t head = 0; head < view->num_heads; head++)
        for (int64_t in_head = 0; in_head < count * group; in_head++) {
            int64_t row = head * view->rows_of_head + in_head;
            float *out = view->layer->out + ((token + in_head / group) * num_heads +
                                             (view->first_head + head) * group + in_head % group) * dim;
            for (int64_t d = 0; d < dim; d++) out[d] = tile->out[row][d] / tile->weight[row];
        }
}

/* `count` query tokens from `token` on, the first at `position`. */
static void attend_tile(const tile_view *view, tile *tile, int64_t token, int64_t position, int64_t count) {
    const int64_t window = view->layer->sliding_window;
    int64_t end = position + count, first = 0, last;
    begin_tile(view, tile, token, position, count);
    /* What no row sees is not read, in whole vectors: leaving out a weight of zero changes nothing. */
    if (window && position >= window) first = (position - window + 1) / LANES * LANES;
    for (; first < end; first = last) {
        last = (first / SPLIT + 1) * SPLIT < end ? (first / SPLIT + 1) * SPLIT : end;
        int64_t padded = (last - first + LANES - 1) / LANES * LANES;
        score_split(view, tile, first, last);
        for (int row = 0; row < view->num_heads * view->rows_of_head; row++)
            weigh_row(tile, row, padded, view->step->head_dim);
        add_split(view, tile, first, last);
    }
    end_tile(view, tile, token, count);
}

static void write_row(const tandem_step *s, int64_t offset, const float *from) {
    if (!s->is_bfloat16) {
        memcpy((float *)s->pool + offset, from, (size_t)s->head_dim * 4);
        return;
    }
    uint16_t *into = (uint16_t *)s->pool + offset;
    for (int64_t d = 0; d < s->head_dim; d++) into[d] = float_to_bfloat16(from[d]);
}

static void write_new(const tandem_step *s, const tandem_layer *layer, int64_t first_head, int64_t last_head) {
    for (int64_t token = 0; token < s->num_tokens; token++) {
        int64_t block = s->slot_mapping[token] / s->block_size, at = s->slot_mapping[token] % s->block_size;
        for (int64_t head = first_head; head < last_head; head++) {
            int64_t row = (block * s->num_layers + layer->layer) * 2 * s->num_kv_heads + head;
            int64_t offset = (row * s->block_size + at) * s->head_dim;
            write_row(s, offset, layer->key + token * layer->key_stride + head * s->head_dim);
            write_row(s, offset + to_values(s),
                      layer->value + token * layer->value_stride + head * s->head_dim);
        }
    }
}

/* The KV heads [first_head, last_head) of one layer of a step: writes the new keys and values into
 * the pool, then attends. Heads have nothing in common, so threads may share them out. */
void tandem_attend(const tandem_step *s, const tandem_layer *layer, int64_t first_head, int64_t last_head) {
    tile tile;
    memset(tile.values, 0, sizeof tile.values);
    write_new(s, layer, first_head, last_head);
    const int64_t per_tile = MAX_ROWS / s->group_size;
    int64_t token = 0;
    for (int64_t seq = 0; seq < s->num_seqs; seq++) {
        const int64_t *table = s->block_tables + seq * s->table_width;
        for (int64_t at = 0; at < s->num_queries[seq]; at += per_tile) {
            int64_t left = s->num_queries[seq] - at, count = left < per_tile ? left : per_tile;
            int64_t rows_of_head = (count * s->group_size + ROWS - 1) / ROWS * ROWS;
            int64_t at_once = MAX_ROWS / rows_of_head, heads;
            for (int64_t head = first_head; head < last_head; head += heads) {
                heads = last_head - head < at_once ? last_head - head : at_once;
                tile_view view = {s, layer, table, head, heads, (int)rows_of_head};
                attend_tile(&view, &tile, token + at, s->starts[seq] + at, count);
            }
        }
        token += s->num_queries[seq];
    }
}
