/* Vectors of GCC and Clang, so that the compiler picks the instructions of the machine; and what
 * all kernels compute with them. */
#ifndef TANDEM_VECTORS_H
#define TANDEM_VECTORS_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 16

typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), may_alias));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES), may_alias));
typedef uint16_t half_vec __attribute__((vector_size(2 * LANES), may_alias));

static inline vec splat(float value) { return (vec){0} + value; }

static inline vec pick(ivec condition, vec yes, vec no) {
    return (vec)((condition & (ivec)yes) | (~condition & (ivec)no));
}

/* exp, exact to about one unit in the last place; 0 below -87. Reduction and polynomial after
 * Cephes (S. Moshier). */
static inline vec exp_of(vec x) {
    ivec is_low = x < splat(-87.0f);
    x = pick(is_low, splat(-87.0f), x);
    x = pick(x > splat(88.0f), splat(88.0f), x);
    vec shifted = x * 1.44269504088896341f + 12582912.0f;
    vec n = shifted - 12582912.0f;
    vec r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    vec y = p * (r * r) + r + 1.0f;
    ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
    y = y * (vec)power;
    return pick(is_low, splat(0.0f), y);
}

static inline float bfloat16_to_float(uint16_t bits) {
    return (union { uint32_t bits; float value; }){(uint32_t)bits << 16}.value;
}

static inline uint16_t float_to_bfloat16(float value) {
    uint32_t bits = (union { float value; uint32_t bits; }){value}.bits;
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

/* float_to_bfloat16 of each lane. */
static inline half_vec vec_to_bfloat16(vec value) {
    uvec bits = (uvec)value;
    uvec rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
    ivec is_nan = (ivec)((bits & 0x7fffffffu) > 0x7f800000u);
    rounded = (uvec)pick(is_nan, (vec)((uvec){0} + 0x7fc0u), (vec)rounded);
    return __builtin_convertvector(rounded, half_vec);
}

#endif
