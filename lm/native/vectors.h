/* Vectors of float32 as wide as a register, by what GCC and Clang have in common. */

#ifndef LM_NATIVE_VECTORS_H_
#define LM_NATIVE_VECTORS_H_

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define FIRST_HALVES 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define SECOND_HALVES 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX2__) && defined(__FMA__)
#define LANES 8
#define FIRST_HALVES 0, 8, 1, 9, 2, 10, 3, 11
#define SECOND_HALVES 4, 12, 5, 13, 6, 14, 7, 15
#else
#error "on other processors nobody has measured whether this is faster than XLA"
#endif

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define UNROLL _Pragma("GCC unroll 24")
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (marks){__VA_ARGS__})
#endif

typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t marks __attribute__((vector_size(LANES * sizeof(int32_t))));

static inline lanes load(const float *from) {
  lanes x;
  memcpy(&x, from, sizeof x);
  return x;
}

static inline void store(float *to, lanes x) { memcpy(to, &x, sizeof x); }

static inline long least(long a, long b) { return a < b ? a : b; }

/* The first `count` of a vector, and zeros. */
static inline lanes load_some(const float *from, long count) {
  if (count >= LANES) return load(from);
  float x[LANES] = {0};
  for (long lane = 0; lane < count; lane++) x[lane] = from[lane];
  return load(x);
}

static inline void store_some(float *to, lanes x, long count) {
  if (count >= LANES)
    store(to, x);
  else
    for (long lane = 0; lane < count; lane++) to[lane] = x[lane];
}

/* x[i][j] <-> x[j][i]: as often as 2 makes LANES, the halves dealt out one between the other. */
static inline void transpose(lanes x[LANES]) {
  UNROLL
  for (int round = 1; round < LANES; round *= 2) {
    lanes dealt[LANES];
    UNROLL
    for (int i = 0; i < LANES / 2; i++) {
      dealt[2 * i] = SHUFFLE(x[i], x[i + LANES / 2], FIRST_HALVES);
      dealt[2 * i + 1] = SHUFFLE(x[i], x[i + LANES / 2], SECOND_HALVES);
    }
    UNROLL
    for (int i = 0; i < LANES; i++) x[i] = dealt[i];
  }
}

/* `yes` where the mask is set, else `no`. */
static inline lanes pick(marks mask, lanes yes, lanes no) {
  return (lanes)((mask & (marks)yes) | (~mask & (marks)no));
}

static inline lanes all(float x) { return (lanes){0} + x; }

/* NaN where either is. */
static inline lanes larger(lanes a, lanes b) { return pick(b != b, b, pick(a < b, b, a)); }

static inline lanes smaller(lanes a, lanes b) { return pick(b != b, b, pick(a > b, b, a)); }

/* x within [low, high]; NaN stays. */
static inline lanes within(lanes x, float low, float high) {
  return smaller(larger(x, all(low)), all(high));
}

/* e^x for x <= 0, to 2 ulp; 0 below -87, where a float's normal range ends. NaN stays.

   2^n e^r with n the nearest integer of x / ln 2 and e^r a polynomial. Source: Moshier, Cephes,
   expf.c. */
static inline lanes exponential(lanes x) {
  const float shift = 12582912.f; /* 1.5 * 2^23: a sum's last bits are the nearest integer */
  const lanes zero = {0};
  const marks vanishes = x < zero - 87.f;
  x = pick(vanishes, zero, x);
  const lanes shifted = x * 1.44269504088896341f + shift;
  const lanes n = shifted - shift;
  const lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  const marks exponent = ((marks)shifted - (marks)(zero + shift) + 127) << 23;
  return pick(vanishes, zero, p * (lanes)exponent);
}

/* 1 / (1 + e^-x), to 3 ulp: with e^-|x|, and from 1 down where x > 0. */
static inline lanes sigmoid(lanes x) {
  const marks is_positive = x > all(0);
  const lanes e = exponential(pick(is_positive, -x, x));
  return pick(is_positive, all(1), e) / (1.f + e);
}

/* A ratio of polynomials, to some ulp; 1 from where it is nearest, and x itself near 0.
   Source: Eigen, ptanh_float, with its bound for fused products; XLA's as well. */
static inline lanes hyperbolic_tangent(lanes x) {
  const lanes least = all(4e-4f), size = larger(x, -x);
  x = within(x, -7.99881172180175781f, 7.99881172180175781f);
  const lanes s = x * x;
  lanes p = s * -2.76076847742355e-16f + 2.00018790482477e-13f;
  p = p * s + -8.60467152213735e-11f;
  p = p * s + 5.12229709037114e-08f;
  p = p * s + 1.48572235717979e-05f;
  p = p * s + 6.37261928875436e-04f;
  p = p * s + 4.89352455891786e-03f;
  lanes q = s * 1.19825839466702e-06f + 1.18534705686654e-04f;
  q = q * s + 2.26843463243900e-03f;
  q = q * s + 4.89352518554385e-03f;
  return pick(size < least, x, x * p / q);
}

#endif
