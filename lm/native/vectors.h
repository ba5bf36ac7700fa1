/* Vectors of float32 as wide as a register, by what GCC and Clang have in common. */

#ifndef LM_NATIVE_VECTORS_H_
#define LM_NATIVE_VECTORS_H_

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__) && defined(__FMA__)
#define LANES 8
#else
#error "on other processors nobody has measured whether this is faster than XLA"
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

/* `yes` where the mask is set, else `no`. */
static inline lanes pick(marks mask, lanes yes, lanes no) {
  return (lanes)((mask & (marks)yes) | (~mask & (marks)no));
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

#endif
