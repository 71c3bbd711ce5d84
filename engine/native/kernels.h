/* What the kernels are called with. Python fills these in (engine/native/calls.py). */
#ifndef TANDEM_KERNELS_H
#define TANDEM_KERNELS_H
#include <stdint.h>

typedef struct {
    const uint16_t *rows;   /* [num_rows, inner] */
    const uint16_t *matrix; /* [columns / 32, inner / 32, 2, 16, 16, 2], zeros behind */
    uint16_t *out;          /* [num_rows, columns] */
    int64_t num_rows, inner, columns, num_threads; /* inner: a multiple of 32 */
} tandem_product;

typedef struct {
    void *rows;      /* [num_rows, width]; with `add`, the sum is written there */
    const void *add; /* null, or [num_rows, width] */
    const void *weight;
    void *out;       /* [num_rows, width], or null: only add */
    int64_t num_rows, width, is_bfloat16, weight_is_bfloat16, num_threads;
    float eps;
} tandem_norm;

typedef struct {
    const void *rows; /* [num_rows, 2 * width]: gate, up */
    void *out;        /* [num_rows, width] */
    int64_t num_rows, width, is_bfloat16, is_gelu, num_threads;
} tandem_gate;

typedef struct {
    const void *rows; /* [num_tokens, num_heads * head_dim]: queries, keys, values */
    float *out;       /* the same shape */
    /* [positions, rotary_dim / 2] */
    const float *cos, *sin;
    const int64_t *positions; /* [num_tokens] */
    /* [head_dim] each, or null */
    const float *query_weight, *key_weight;
    int64_t num_tokens, num_queries, num_keys, num_heads, head_dim, rotary_dim, is_bfloat16, num_threads;
    float query_eps, key_eps;
} tandem_turn;

typedef struct {
    void *rows;       /* [num_rows, width] bfloat16 */
    const void *bias; /* [width] */
    int64_t num_rows, width, num_threads;
} tandem_bias;

/* Keys that the same query tokens see: [first, last), both multiples of SPLIT. */
typedef struct {
    int64_t first, last;
    int64_t members_at, num_members; /* at most MAX_ROWS / group_size */
} tandem_shared_tile;

typedef struct {
    void *pool; /* pieces [block_size, head_dim], one for each block, layer, head and of keys or values */
    int64_t is_bfloat16;
    /* From one to the next, in numbers: where a piece lies. Heads lie in groups of so many. */
    int64_t block_stride, group_stride, layer_stride, to_values, head_stride, heads_of_group;
    int64_t num_kv_heads, block_size, head_dim, group_size;
    int64_t num_seqs, num_tokens;
    const int64_t *starts;       /* [num_seqs] position of the first query token */
    const int64_t *num_queries;  /* [num_seqs] */
    const int64_t *block_tables; /* [num_seqs, table_width] */
    int64_t table_width;
    const int64_t *slot_mapping; /* [num_tokens] block * block_size + offset */
    /* Beginnings that several sequences of one query token share. A round goes on from the states
     * that the one before has left; after the last, each sequence goes on alone. */
    int64_t num_rounds;
    const int64_t *rounds;              /* [num_rounds + 1] first tile of each round */
    const tandem_shared_tile *tiles;    /* [rounds[num_rounds]] */
    const int64_t *members;             /* sequences, which here are query tokens */
    const int64_t *shared_tokens;       /* [num_seqs] that tiles compute of each sequence */
    int64_t longest_member;             /* tokens of the longest member, its query token included */
    float *states;                      /* [num_seqs, num_heads, head_dim + 2] */
} tandem_step;

typedef struct {
    int64_t layer;
    float scale;
    float softcap;          /* 0: none */
    int64_t sliding_window; /* 0: none */
    /* [num_tokens, heads, head_dim] float32, tokens this many numbers apart */
    const float *query, *key, *value;
    int64_t query_stride, key_stride, value_stride;
    void *out; /* [num_tokens, num_heads, head_dim], contiguous */
    int64_t out_is_bfloat16;
} tandem_layer;

void tandem_multiply(const tandem_product *p);
void tandem_normalise(const tandem_norm *n);
void tandem_apply_gate(const tandem_gate *g);
void tandem_turn_heads(const tandem_turn *t);
void tandem_add_bias(const tandem_bias *b);
void tandem_attend(const tandem_step *s, const tandem_layer *layer, int64_t num_threads);

#endif
