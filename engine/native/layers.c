/* All layers of a decoder in one call: the same kernels in the same order as one by one, without a way
 * back to the caller between them. For bfloat16, the matrix unit and dense layers. */
#include <stddef.h>

#include "kernels.h"

/* Every call of a layer; what differs from step to step is filled in here. */
typedef struct {
    tandem_norm input_norm, mlp_norm;
    /* Of what attention and MLP give, before it is added. Without weight: none. */
    tandem_norm attention_out_norm, mlp_out_norm;
    tandem_product qkv, attention_out, gate_up, down;
    /* [columns] each, or null */
    const uint16_t *qkv_bias, *attention_out_bias, *gate_up_bias, *down_bias;
    tandem_turn turn;
    tandem_gate gate;
    tandem_layer attention;
} tandem_decoder_layer;

typedef struct {
    const tandem_decoder_layer *layers;
    const tandem_step *step;
    const int64_t *positions; /* [num_rows] */
    uint16_t *hidden;         /* [num_rows, hidden_size]: the embedded tokens, in the end the result */
    /* Room for what lies between, num_rows rows each: hidden_size twice; queries, keys and values; the
     * same as float32; queries; 2 and 1 x intermediate_size. */
    uint16_t *normed, *out, *fused;
    float *heads;
    uint16_t *attended, *gate_up, *gated;
    int64_t num_layers, num_rows, num_threads, attention_threads;
} tandem_pass;

/* out = norm(rows + add); the sum stays in `rows`. */
static void normalise(const tandem_pass *p, const tandem_norm *of, uint16_t *rows, const uint16_t *add,
                      uint16_t *out) {
    tandem_norm call = *of;
    call.rows = rows, call.add = add, call.out = out;
    call.num_rows = p->num_rows, call.num_threads = p->num_threads;
    tandem_normalise(&call);
}

static void multiply(const tandem_pass *p, const tandem_product *by, const uint16_t *bias,
                     const uint16_t *rows, uint16_t *out) {
    tandem_product call = *by;
    call.rows = rows, call.out = out;
    call.num_rows = p->num_rows, call.num_threads = p->num_threads;
    tandem_multiply(&call);
    const tandem_bias adding = {out, bias, p->num_rows, by->columns, p->num_threads};
    if (bias) tandem_add_bias(&adding);
}

/* p->fused to p->attended. */
static void attend(const tandem_pass *p, const tandem_decoder_layer *layer) {
    tandem_turn turn = layer->turn;
    turn.rows = p->fused, turn.out = p->heads, turn.positions = p->positions;
    turn.num_tokens = p->num_rows, turn.num_threads = p->num_threads;
    tandem_turn_heads(&turn);
    tandem_layer call = layer->attention;
    call.query = p->heads;
    call.key = call.query + turn.num_queries * turn.head_dim;
    call.value = call.key + turn.num_keys * turn.head_dim;
    call.query_stride = call.key_stride = call.value_stride = turn.num_heads * turn.head_dim;
    call.out = p->attended, call.out_is_bfloat16 = 1;
    tandem_attend(p->step, &call, p->attention_threads);
}

static void apply_mlp(const tandem_pass *p, const tandem_decoder_layer *layer) {
    multiply(p, &layer->gate_up, layer->gate_up_bias, p->normed, p->gate_up);
    tandem_gate gate = layer->gate;
    gate.rows = p->gate_up, gate.out = p->gated;
    gate.num_rows = p->num_rows, gate.num_threads = p->num_threads;
    tandem_apply_gate(&gate);
    multiply(p, &layer->down, layer->down_bias, p->gated, p->out);
}

/* p->hidden becomes what the layers make of it. */
void tandem_run_layers(const tandem_pass *p) {
    const uint16_t *add = NULL;
    for (int64_t index = 0; index < p->num_layers; index++) {
        const tandem_decoder_layer *layer = p->layers + index;
        normalise(p, &layer->input_norm, p->hidden, add, p->normed);
        multiply(p, &layer->qkv, layer->qkv_bias, p->normed, p->fused);
        attend(p, layer);
        multiply(p, &layer->attention_out, layer->attention_out_bias, p->attended, p->out);
        if (layer->attention_out_norm.weight) normalise(p, &layer->attention_out_norm, p->out, NULL, p->out);
        normalise(p, &layer->mlp_norm, p->hidden, p->out, p->normed);
        apply_mlp(p, layer);
        if (layer->mlp_out_norm.weight) normalise(p, &layer->mlp_out_norm, p->out, NULL, p->out);
        add = p->out;
    }
    if (add) normalise(p, &p->layers[0].input_norm, p->hidden, add, NULL);
}
