/* What a decoder does to each row between its products, in float32 whatever the rows hold.
 *
 * A row goes through the same operations in the same order whatever the other rows are. Numbers of
 * rows are float32 or bfloat16; `is_bfloat16` says which.
 */
#include <math.h>

#include "kernels.h"
#include "threads.h"
#include "vectors.h"

/* Numbers below which a second thread costs more than it saves. */
#define MIN_NUMBERS_OF_SHARE 32768

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Up to LANES numbers; zeros behind `count`. */
static inline vec load(const void *row, int64_t at, int64_t count, int64_t is_bfloat16) {
    if (is_bfloat16) {
        half_vec bits = {0};
        const uint16_t *from = (const uint16_t *)row + at;
        if (count >= LANES) memcpy(&bits, from, sizeof bits);
        else memcpy(&bits, from, (size_t)count * 2);
        return (vec)(__builtin_convertvector(bits, uvec) << 16);
    }
    vec value = {0};
    const float *from = (const float *)row + at;
    if (count >= LANES) memcpy(&value, from, sizeof value);
    else memcpy(&value, from, (size_t)count * 4);
    return value;
}

static inline void store(void *row, int64_t at, int64_t count, int64_t is_bfloat16, vec value) {
    if (is_bfloat16) {
        half_vec bits = vec_to_bfloat16(value);
        uint16_t *into = (uint16_t *)row + at;
        if (count >= LANES) memcpy(into, &bits, sizeof bits);
        else memcpy(into, &bits, (size_t)count * 2);
        return;
    }
    float *into = (float *)row + at;
    if (count >= LANES) memcpy(into, &value, sizeof value);
    else memcpy(into, &value, (size_t)count * 4);
}

/* 1 / root mean square, from sums of squares lane by lane. */
static inline float scale_of(vec even, vec odd, int64_t width, float eps) {
    vec squares = even + odd;
    float total = 0.0f;
    for (int t = 0; t < LANES; t++) total += squares[t];
    return 1.0f / sqrtf(total / (float)width + eps);
}

static inline void norm_row(const tandem_norm *n, int64_t row, int64_t is_bfloat16) {
    const int64_t start = row * n->width, width = n->width;
    vec sums[2] = {{0}, {0}};
    for (int64_t i = 0; i < width; i += LANES) {
        vec x = load(n->rows, start + i, width - i, is_bfloat16);
        if (n->add) {
            x += load(n->add, start + i, width - i, is_bfloat16);
            store(n->rows, start + i, width - i, is_bfloat16, x);
            if (is_bfloat16) x = load(n->rows, start + i, width - i, is_bfloat16);
        }
        sums[i / LANES % 2] += x * x;
    }
    if (!n->out) return;
    const float scale = scale_of(sums[0], sums[1], width, n->eps);
    for (int64_t i = 0; i < width; i += LANES) {
        vec x = load(n->rows, start + i, width - i, is_bfloat16) * scale;
        x *= load(n->weight, i, width - i, n->weight_is_bfloat16);
        store(n->out, start + i, width - i, is_bfloat16, x);
    }
}

static void norm_share(const void *job, int64_t share, int64_t num_shares) {
    const tandem_norm *n = job;
    const int64_t end = n->num_rows * (share + 1) / num_shares;
    for (int64_t row = n->num_rows * share / num_shares; row < end; row++) {
        if (n->is_bfloat16) norm_row(n, row, 1);
        else norm_row(n, row, 0);
    }
}

/* Shares of rows that are worth a thread. */
static int64_t shares_of(int64_t num_rows, int64_t width) {
    return smaller(num_rows, 1 + num_rows * width / MIN_NUMBERS_OF_SHARE);
}

/* out = (rows + add) scaled to a root mean square of one, times the weight. */
void tandem_normalise(const tandem_norm *n) {
    tandem_in_shares(norm_share, n, shares_of(n->num_rows, n->width), n->num_threads);
}

/* gelu(x) is about x * sigmoid(2u), u = sqrt(2 / pi) * (x + 0.044715 x^3); Hendrycks, Gimpel 2016. */
static inline vec activate(vec gate, int64_t is_gelu) {
    vec exponent = -gate;
    if (is_gelu) exponent = (gate * gate * 0.044715f + 1.0f) * gate * -1.5957691216057308f;
    return gate / (exp_of(exponent) + 1.0f);
}

static void gate_share(const void *job, int64_t share, int64_t num_shares) {
    const tandem_gate *g = job;
    const int64_t width = g->width, end = g->num_rows * (share + 1) / num_shares;
    for (int64_t row = g->num_rows * share / num_shares; row < end; row++)
        for (int64_t i = 0; i < width; i += LANES) {
            vec gate = load(g->rows, 2 * row * width + i, width - i, g->is_bfloat16);
            vec up = load(g->rows, (2 * row + 1) * width + i, width - i, g->is_bfloat16);
            vec out = activate(gate, g->is_gelu) * up;
            store(g->out, row * width + i, width - i, g->is_bfloat16, out);
        }
}

/* out = activation(gate) * up. */
void tandem_apply_gate(const tandem_gate *g) {
    tandem_in_shares(gate_share, g, shares_of(g->num_rows, 4 * g->width), g->num_threads);
}

static void norm_head(float *head, const float *weight, int64_t dim, float eps) {
    vec sums[2] = {{0}, {0}};
    for (int64_t i = 0; i < dim; i += LANES) {
        vec x = load(head, i, dim - i, 0);
        sums[i / LANES % 2] += x * x;
    }
    const float scale = scale_of(sums[0], sums[1], dim, eps);
    for (int64_t i = 0; i < dim; i += LANES)
        store(head, i, dim - i, 0, load(head, i, dim - i, 0) * scale * load(weight, i, dim - i, 0));
}

static void turn_head(float *restrict head, const float *restrict cos, const float *restrict sin, int64_t half) {
    float *restrict other = head + half;
    for (int64_t i = 0; i < half; i += LANES) {
        const int64_t count = half - i;
        vec low = load(head, i, count, 0), high = load(other, i, count, 0);
        vec c = load(cos, i, count, 0), s = load(sin, i, count, 0);
        store(head, i, count, 0, low * c - high * s);
        store(other, i, count, 0, high * c + low * s);
    }
}

static void turn_share(const void *job, int64_t share, int64_t num_shares) {
    const tandem_turn *t = job;
    const int64_t dim = t->head_dim, half = t->rotary_dim / 2, num_turned = t->num_queries + t->num_keys;
    const int64_t end = t->num_tokens * (share + 1) / num_shares;
    for (int64_t token = t->num_tokens * share / num_shares; token < end; token++) {
        const float *cos = t->cos + t->positions[token] * half, *sin = t->sin + t->positions[token] * half;
        for (int64_t index = 0; index < t->num_heads; index++) {
            const int64_t start = (token * t->num_heads + index) * dim;
            float *head = t->out + start;
            for (int64_t i = 0; i < dim; i += LANES)
                store(head, i, dim - i, 0, load(t->rows, start + i, dim - i, t->is_bfloat16));
            if (index >= num_turned) continue;
            const int is_query = index < t->num_queries;
            const float *weight = is_query ? t->query_weight : t->key_weight;
            if (weight) norm_head(head, weight, dim, is_query ? t->query_eps : t->key_eps);
            turn_head(head, cos, sin, half);
        }
    }
}

/* Rows as float32; queries and keys normalised where there are weights, and rotated. */
void tandem_turn_heads(const tandem_turn *t) {
    tandem_in_shares(turn_share, t, shares_of(t->num_tokens, t->num_heads * t->head_dim), t->num_threads);
}

static void bias_share(const void *job, int64_t share, int64_t num_shares) {
    const tandem_bias *b = job;
    const int64_t width = b->width, end = b->num_rows * (share + 1) / num_shares;
    for (int64_t row = b->num_rows * share / num_shares; row < end; row++)
        for (int64_t i = 0; i < width; i += LANES) {
            vec sum = load(b->rows, row * width + i, width - i, 1) + load(b->bias, i, width - i, 1);
            store(b->rows, row * width + i, width - i, 1, sum);
        }
}

/* rows += bias. */
void tandem_add_bias(const tandem_bias *b) {
    tandem_in_shares(bias_share, b, shares_of(b->num_rows, b->width), b->num_threads);
}
