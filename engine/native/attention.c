/* Attention over paged KV on a CPU, for one row of a batch at a time.
 *
 * Every row (a query token and a head) goes through the same operations in the same order, whatever
 * else is in the batch: scores of 16 keys at a time, the softmax joined after every SPLIT keys
 * counted from the start of the sequence, values added key by key. Rows share the loads of keys and
 * values, nothing else; so rows of several sequences may share those of a common beginning, and go on
 * from there each for itself. No reassociation: compile without -ffast-math.
 */
#include "paged_kv.h"
#include "threads.h"

/* Shares differ in work, so there are several for each thread. */
#define SHARES_OF_THREAD 8
/* Tokens to write below which a second thread costs more than it saves. */
#define MIN_TOKENS_OF_SHARE 64

/* What its threads share. */
typedef struct {
    const tandem_step *step;
    const tandem_layer *layer;
    int64_t head_parts, num_units;
    /* Whether states are gone on from; and where a round's tiles begin. */
    int64_t is_shared, first_tile;
} attention_call;

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
            load_keys(view, offsets, view->head_offsets[head], tile);
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
            load_values(view, offsets, s->to_values + view->head_offsets[head], tile);
            int row = (int)head * view->rows_of_head, end = row + view->rows_of_head;
            for (; row < end; row += ROWS) {
                int64_t d = 0;
                for (; d + 4 * LANES <= dim; d += 4 * LANES) add_values_4(tile, row, group, d);
                for (; d < dim; d += LANES) add_values_1(tile, row, group, d);
            }
        }
    }
}

static inline int64_t token_of(const tile_view *view, int64_t index) {
    return view->members ? view->members[index] : view->token + index;
}

static inline int64_t position_of(const tile_view *view, int64_t index) {
    return view->members ? view->step->starts[view->members[index]] : view->position + index;
}

/* What a row has come to: its sums, its highest score, its weight. */
static inline float *state_of(const tile_view *view, int64_t token, int64_t query_head) {
    const tandem_step *s = view->step;
    return s->states + (token * s->num_kv_heads * s->group_size + query_head) * (s->head_dim + 2);
}

static inline void load_state(tile *tile, int row, const float *state, int64_t dim) {
    memcpy(tile->out[row], state, (size_t)dim * 4);
    tile->highest[row] = state[dim], tile->weight[row] = state[dim + 1];
}

static inline void store_state(const tile *tile, int64_t row, float *state, int64_t dim) {
    memcpy(state, tile->out[row], (size_t)dim * 4);
    state[dim] = tile->highest[row], state[dim + 1] = tile->weight[row];
}

/* Rows of a head: its query heads, token by token, then zeros up to a multiple of ROWS. */
static void begin_tile(const tile_view *view, tile *tile) {
    const tandem_step *s = view->step;
    const int64_t dim = s->head_dim, group = s->group_size, padded_dim = (dim + LANES - 1) / LANES * LANES;
    for (int row = 0; row < view->num_heads * view->rows_of_head; row++) {
        int64_t head = view->first_head + row / view->rows_of_head, in_head = row % view->rows_of_head;
        const int is_row = in_head < view->count * group;
        const int64_t index = is_row ? in_head / group : view->count - 1, token = token_of(view, index);
        const int64_t query_head = head * group + in_head % group;
        const float *query = view->layer->query + token * view->layer->query_stride + query_head * dim;
        for (int64_t d = 0; d < dim; d++) tile->query[row][d] = is_row ? query[d] * view->layer->scale : 0.0f;
        tile->position[row] = position_of(view, index);
        tile->highest[row] = HIDDEN, tile->weight[row] = 0.0f;
        memset(tile->out[row], 0, (size_t)padded_dim * 4);
        if (is_row && view->first_key) load_state(tile, row, state_of(view, token, query_head), dim);
    }
}

/* What no row sees is not read, in whole vectors: leaving out a weight of zero changes nothing. */
static int64_t first_seen(const tile_view *view) {
    const int64_t window = view->layer->sliding_window;
    if (!window || view->members || view->position < window) return 0;
    return (view->position - window + 1) / LANES * LANES;
}

/* Members' rows wait as states, those of others are done. */
static void end_tile(const tile_view *view, const tile *tile) {
    const tandem_step *s = view->step;
    const int64_t dim = s->head_dim, group = s->group_size, num_heads = group * s->num_kv_heads;
    for (int64_t head = 0; head < view->num_heads; head++)
        for (int64_t in_head = 0; in_head < view->count * group; in_head++) {
            int64_t row = head * view->rows_of_head + in_head;
            int64_t query_head = (view->first_head + head) * group + in_head % group;
            const int64_t token = token_of(view, in_head / group);
            if (view->members) {
                store_state(tile, row, state_of(view, token, query_head), dim);
                continue;
            }
            int64_t to = (token * num_heads + query_head) * dim;
            float *out = (float *)view->layer->out + to;
            uint16_t *rounded = (uint16_t *)view->layer->out + to;
            for (int64_t d = 0; d < dim; d++) {
                const float value = tile->out[row][d] / tile->weight[row];
                if (view->layer->out_is_bfloat16) rounded[d] = float_to_bfloat16(value);
                else out[d] = value;
            }
        }
}

static void attend_tile(const tile_view *view, tile *tile) {
    int64_t end = view->last_key, first = view->first_key, last;
    begin_tile(view, tile);
    if (!first) first = first_seen(view);
    for (; first < end; first = last) {
        last = (first / SPLIT + 1) * SPLIT < end ? (first / SPLIT + 1) * SPLIT : end;
        int64_t padded = (last - first + LANES - 1) / LANES * LANES;
        score_split(view, tile, first, last);
        for (int row = 0; row < view->num_heads * view->rows_of_head; row++)
            weigh_row(tile, row, padded, view->step->head_dim);
        add_split(view, tile, first, last);
    }
    end_tile(view, tile);
}

static void write_row(const tandem_step *s, int64_t offset, const float *from) {
    if (!s->is_bfloat16) {
        memcpy((float *)s->pool + offset, from, (size_t)s->head_dim * 4);
        return;
    }
    uint16_t *into = (uint16_t *)s->pool + offset;
    for (int64_t d = 0; d < s->head_dim; d++) into[d] = float_to_bfloat16(from[d]);
}

/* The keys and values of the tokens of one share, all heads. */
static void write_share(const void *call, int64_t share, int64_t num_shares) {
    const tandem_step *s = ((const attention_call *)call)->step;
    const tandem_layer *layer = ((const attention_call *)call)->layer;
    const int64_t last = s->num_tokens * (share + 1) / num_shares;
    for (int64_t token = s->num_tokens * share / num_shares; token < last; token++) {
        int64_t block = s->slot_mapping[token] / s->block_size, at = s->slot_mapping[token] % s->block_size;
        const int64_t first = block * s->block_stride + layer->layer * s->layer_stride + at * s->head_dim;
        for (int64_t head = 0; head < s->num_kv_heads; head++) {
            const int64_t offset = first + head_offset(s, head);
            write_row(s, offset, layer->key + token * layer->key_stride + head * s->head_dim);
            write_row(s, offset + s->to_values,
                      layer->value + token * layer->value_stride + head * s->head_dim);
        }
    }
}

/* The heads [first_head, last_head). */
static void attend_heads(const tile_view *where, tile *tile, int64_t last_head) {
    const int64_t rows_of_head = (where->count * where->step->group_size + ROWS - 1) / ROWS * ROWS;
    const int64_t at_once = MAX_ROWS / rows_of_head;
    tile_view view = *where;
    view.rows_of_head = (int)rows_of_head;
    for (; view.first_head < last_head; view.first_head += view.num_heads) {
        const int64_t left = last_head - view.first_head;
        const int64_t of_group = where->step->heads_of_group;
        const int64_t in_group = of_group - view.first_head % of_group;
        view.num_heads = left < at_once ? left : at_once;
        if (in_group < view.num_heads) view.num_heads = in_group;
        for (int64_t head = 0; head < view.num_heads; head++)
            view.head_offsets[head] = head_offset(view.step, view.first_head + head);
        attend_tile(&view, tile);
    }
}

static int64_t groups_of(const tandem_step *s, int64_t seq) {
    const int64_t size = MAX_ROWS / s->group_size;
    return (s->num_queries[seq] + size - 1) / size;
}

/* Units are groups of query tokens times parts of the heads; nothing that a unit computes depends
 * on another. */
static void attend_share(const void *shared, int64_t share, int64_t num_shares) {
    const attention_call *call = shared;
    const tandem_step *s = call->step;
    const int64_t size = MAX_ROWS / s->group_size, parts = call->head_parts;
    int64_t unit = call->num_units * share / num_shares, seq = 0, token = 0, before = 0;
    const int64_t last_unit = call->num_units * (share + 1) / num_shares;
    tile tile;
    memset(tile.values, 0, sizeof tile.values);
    for (; unit < last_unit; unit++) {
        for (; unit / parts >= before + groups_of(s, seq); seq++) {
            before += groups_of(s, seq);
            token += s->num_queries[seq];
        }
        const int64_t at = (unit / parts - before) * size, part = unit % parts;
        const int64_t left = s->num_queries[seq] - at, count = left < size ? left : size;
        const tile_view where = {.step = s, .layer = call->layer,
                                 .table = s->block_tables + seq * s->table_width,
                                 .token = token + at, .position = s->starts[seq] + at, .count = count,
                                 .first_key = call->is_shared ? s->shared_tokens[seq] : 0,
                                 .last_key = s->starts[seq] + at + count,
                                 .first_head = s->num_kv_heads * part / parts};
        attend_heads(&where, &tile, s->num_kv_heads * (part + 1) / parts);
    }
}

/* Units are shared tiles times parts of the heads. */
static void attend_shared(const void *shared, int64_t share, int64_t num_shares) {
    const attention_call *call = shared;
    const tandem_step *s = call->step;
    const int64_t parts = call->head_parts, last_unit = call->num_units * (share + 1) / num_shares;
    tile tile;
    memset(tile.values, 0, sizeof tile.values);
    for (int64_t unit = call->num_units * share / num_shares; unit < last_unit; unit++) {
        const tandem_shared_tile *of = s->tiles + call->first_tile + unit / parts;
        const int64_t *members = s->members + of->members_at, part = unit % parts;
        const tile_view where = {.step = s, .layer = call->layer,
                                 .table = s->block_tables + members[0] * s->table_width,
                                 .members = members, .count = of->num_members,
                                 .first_key = of->first, .last_key = of->last,
                                 .first_head = s->num_kv_heads * part / parts};
        attend_heads(&where, &tile, s->num_kv_heads * (part + 1) / parts);
    }
}

/* `num_units` for all heads or, if they part, for each, by threads that each find several shares. */
static void in_units(share_function *compute, attention_call *call, int64_t num_units, int is_parting,
                     int64_t num_threads) {
    call->head_parts = is_parting ? call->step->num_kv_heads : 1;
    call->num_units = num_units * call->head_parts;
    const int64_t most = SHARES_OF_THREAD * num_threads;
    tandem_in_shares(compute, call, call->num_units < most ? call->num_units : most, num_threads);
}

/* One layer of a step: writes the new keys and values into the pool, then attends. */
void tandem_attend(const tandem_step *s, const tandem_layer *layer, int64_t num_threads) {
    attention_call call = {.step = s, .layer = layer};
    int64_t num_units = 0;
    for (int64_t seq = 0; seq < s->num_seqs; seq++) num_units += groups_of(s, seq);
    tandem_in_shares(write_share, &call, 1 + s->num_tokens / MIN_TOKENS_OF_SHARE, num_threads);
    /* Where a window has left a beginning behind, nothing of it is read, and so not together. */
    const int64_t window = layer->sliding_window;
    call.is_shared = s->num_rounds > 0 && (!window || s->longest_member <= window);
    for (int64_t round = 0; call.is_shared && round < s->num_rounds; round++) {
        call.first_tile = s->rounds[round];
        /* Rows of many members are of one head or two anyway, and one tile may be much of a round. */
        in_units(attend_shared, &call, s->rounds[round + 1] - call.first_tile, num_threads > 1, num_threads);
    }
    /* A head alone reads memory with gaps, so heads part only where there is too little else. */
    in_units(attend_share, &call, num_units, num_units < 2 * num_threads, num_threads);
}
