/* A few rows times a panel of 16 columns, all sums in registers: what products here are made of.

   Rows come in blocks, turned, [K, rows], so that their entries of one k lie together. A panel,
   [K, 16], is read in one stream. Each sum is taken over k in order.

   Source of the scheme: Goto & van de Geijn, "Anatomy of high-performance matrix multiplication",
   ACM TOMS 34(3), 2008. C11 with the vectors of GCC and Clang, no processor's own intrinsics. */

#ifndef LM_NATIVE_TILE_H_
#define LM_NATIVE_TILE_H_

#include "vectors.h"

#define COLUMNS 16 /* of a panel */
#if LANES == 16
#define ROWS 24 /* of a block at most: sums that the registers hold beside a row of the panel */
#else
#define ROWS 6
#endif
#define TILE_VECTORS (COLUMNS / LANES)
#define AHEAD 8            /* rows of a panel that are fetched before they are wanted */

static inline long count_panels(long columns) { return (columns + COLUMNS - 1) / COLUMNS; }

static inline long count_blocks(long rows) { return (rows + ROWS - 1) / ROWS; }

/* Rows are dealt out to the blocks in even shares: where a block begins. */
static inline long block_start(long rows, long block) { return rows * block / count_blocks(rows); }

/* turned [depth, rows] times panel [depth, 16] -> sums [rows, 16]; `rows` is a constant wherever
   this is inlined. */
static inline __attribute__((always_inline)) void multiply_rows(const int rows, long depth,
                                                                const float *restrict turned,
                                                                const float *restrict panel,
                                                                float *restrict sums) {
  lanes acc[ROWS][TILE_VECTORS];
  UNROLL
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < TILE_VECTORS; v++) acc[r][v] = (lanes){0};
  for (long k = 0; k < depth; k++) {
    lanes w[TILE_VECTORS];
    for (int v = 0; v < TILE_VECTORS; v++) w[v] = load(panel + k * COLUMNS + v * LANES);
    __builtin_prefetch(panel + (k + AHEAD) * COLUMNS);
    UNROLL
    for (int r = 0; r < rows; r++)
      for (int v = 0; v < TILE_VECTORS; v++) acc[r][v] += turned[k * rows + r] * w[v];
  }
  UNROLL
  for (int r = 0; r < rows; r++) memcpy(sums + r * COLUMNS, acc[r], sizeof acc[r]);
}

static void multiply(long rows, long depth, const float *turned, const float *panel, float *sums) {
#define CASE(n)                                   \
  case n:                                         \
    multiply_rows(n, depth, turned, panel, sums); \
    break;
  switch (rows) {
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS > 6
    CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14) CASE(15)
    CASE(16) CASE(17) CASE(18) CASE(19) CASE(20) CASE(21) CASE(22) CASE(23) CASE(24)
#endif
  }
#undef CASE
}

/* x [count, depth], its rows `stride` apart -> turned [depth, width], as much of its width. */
static inline void turn(long count, long width, long depth, const float *restrict x, long stride,
                        float *restrict turned) {
  for (long from = 0; from < depth; from += LANES)
    for (long row = 0; row < count; row += LANES) {
      const long rows = least(LANES, count - row), columns = least(LANES, depth - from);
      lanes block[LANES];
      UNROLL
      for (long r = 0; r < LANES; r++)
        block[r] = r < rows ? load_some(x + (row + r) * stride + from, columns) : (lanes){0};
      transpose(block);
      UNROLL
      for (long k = 0; k < LANES; k++)
        if (k < columns) store_some(turned + (from + k) * width + row, block[k], rows);
    }
}

/* 16 columns of w [depth, stride], of which there are `count`, and zeros -> panel [depth, 16]. */
static void pack_columns(const float *w, long stride, long depth, long count, float *panel) {
  for (long k = 0; k < depth; k++)
    for (long c = 0; c < COLUMNS; c++)
      panel[k * COLUMNS + c] = c < count ? w[k * stride + c] : 0;
}

/* 16 rows of w [count, depth], and zeros, as columns -> panel [depth, 16]. */
static void pack_rows(const float *w, long depth, long count, float *panel) {
  if (count < COLUMNS) memset(panel, 0, (size_t)(depth * COLUMNS) * sizeof(float));
  turn(count, COLUMNS, depth, w, depth, panel);
}

#endif
