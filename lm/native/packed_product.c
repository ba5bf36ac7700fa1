/* u = x W for few rows of x and a W that many calls share: the product inside a recurrence.

   W [K, N] is packed once, in panels of 16 columns, [N / 16, K, 16], the last one filled up with
   zeros. A panel is then read in one stream, once for all rows of a block of x, whose sums stay in
   registers from k = 0 to K - 1. The block is turned, [K, rows], so that its entries of one k lie
   together. Each sum is taken over k in order, by one thread: u does not depend on how many there
   are, nor on the other rows.

   Source of the scheme: Goto & van de Geijn, "Anatomy of high-performance matrix multiplication",
   ACM TOMS 34(3), 2008. C11 with the vectors of GCC and Clang, no processor's own intrinsics. */

#include "team.h"
#include "vectors.h"

#define COLUMNS 16 /* of a panel */
#if LANES == 16
#define ROWS 24 /* of a block at most: sums that the registers hold beside a row of the panel */
#else
#define ROWS 6
#endif
#define VECTORS (COLUMNS / LANES)
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 24")
#endif
#define AHEAD 8            /* rows of a panel that are fetched before they are wanted */
#define LEAST_WORK 500000L /* multiplications worth a thread of their own: some 10 us */
#define COST 128           /* columns of u that take as long as fetching x from another core */
#define LEAST_PACK 100000L /* numbers to pack that are worth a thread of their own */

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
  lanes acc[ROWS][VECTORS];
  UNROLL
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < VECTORS; v++) acc[r][v] = (lanes){0};
  for (long k = 0; k < depth; k++) {
    lanes w[VECTORS];
    for (int v = 0; v < VECTORS; v++) w[v] = load(panel + k * COLUMNS + v * LANES);
    __builtin_prefetch(panel + (k + AHEAD) * COLUMNS);
    UNROLL
    for (int r = 0; r < rows; r++)
      for (int v = 0; v < VECTORS; v++) acc[r][v] += turned[k * rows + r] * w[v];
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

/* [count, depth] -> [depth, width], a few k at a time, so that both stay in the first cache. */
static void turn(long count, long width, long depth, const float *restrict x,
                 float *restrict turned) {
  for (long from = 0; from < depth; from += COLUMNS) {
    const long to = least(from + COLUMNS, depth);
    for (long row = 0; row < count; row++)
      for (long k = from; k < to; k++) turned[k * width + row] = x[row * depth + k];
  }
}

typedef struct {
  const float *x, *panels; /* [rows, depth], [panels, depth, 16] */
  float *u, *turned;       /* [rows, columns]; x block by block, [depth, rows] each */
  long rows, depth, columns, pieces;
} Product;

static void turn_blocks(const Product *p, long from, long to) {
  for (long block = from; block < to; block++) {
    const long first = block_start(p->rows, block), rows = block_start(p->rows, block + 1) - first;
    turn(rows, rows, p->depth, p->x + first * p->depth, p->turned + first * p->depth);
  }
}

static void multiply_panels(const Product *p, long from, long to) {
  float sums[ROWS * COLUMNS];
  for (long panel = from; panel < to; panel++) {
    const long column = panel * COLUMNS, count = least(COLUMNS, p->columns - column);
    for (long block = 0; block < count_blocks(p->rows); block++) {
      const long first = block_start(p->rows, block);
      const long rows = block_start(p->rows, block + 1) - first;
      multiply(rows, p->depth, p->turned + first * p->depth, p->panels + column * p->depth, sums);
      for (long r = 0; r < rows; r++)
        memcpy(p->u + (first + r) * p->columns + column, sums + r * COLUMNS,
               (size_t)count * sizeof(float));
    }
  }
}

/* A piece has its share of the blocks to turn, and in the step after of the panels. */
static void work_on_product(void *job, long step, long piece) {
  const Product *p = job;
  const long count = step == 0 ? count_blocks(p->rows) : count_panels(p->columns);
  const long from = count * piece / p->pieces, to = count * (piece + 1) / p->pieces;
  if (step == 0)
    turn_blocks(p, from, to);
  else
    multiply_panels(p, from, to);
}

/* x [rows, K], panels [N / 16, K, 16] -> u [rows, N], and room for x once more. float32. */
XLA_FFI_Error *packed_product(XLA_FFI_CallFrame *frame) {
  if (answers_version(frame)) return NULL;
  XLA_FFI_Error *error = check_types(frame, 2);
  if (error) return error;
  const XLA_FFI_Buffer *x = argument(frame, 0), *u = result(frame, 0);
  Product p = {.x = x->data, .panels = argument(frame, 1)->data,
               .u = u->data, .turned = result(frame, 1)->data,
               .rows = x->dims[0], .depth = x->dims[1], .columns = u->dims[1]};
  const long threads = p.rows * p.depth * (p.columns - COST) / LEAST_WORK;
  p.pieces = threads > 1 ? least(64, count_panels(p.columns)) : 1;
  return run_team(frame, work_on_product, &p, 2, p.pieces, threads);
}

typedef struct {
  const float *w;
  float *panels;
  long depth, columns; /* of the matrix that is packed */
} Packing;

static void pack_columns(void *job, long step, long panel) {
  const Packing *p = job;
  const long column = panel * COLUMNS, count = least(COLUMNS, p->columns - column);
  (void)step;
  for (long k = 0; k < p->depth; k++) {
    float *row = p->panels + column * p->depth + k * COLUMNS;
    for (long c = 0; c < COLUMNS; c++) row[c] = c < count ? p->w[k * p->columns + column + c] : 0;
  }
}

static void pack_rows(void *job, long step, long panel) {
  const Packing *p = job;
  const long row = panel * COLUMNS, count = least(COLUMNS, p->columns - row);
  float *to = p->panels + row * p->depth;
  (void)step;
  if (count < COLUMNS) memset(to, 0, (size_t)(p->depth * COLUMNS) * sizeof(float));
  turn(count, COLUMNS, p->depth, p->w + row * p->depth, to);
}

static XLA_FFI_Error *run_packing(const XLA_FFI_CallFrame *frame, Piece *pack, long depth,
                                  long columns) {
  XLA_FFI_Error *error = check_types(frame, 1);
  if (error) return error;
  Packing p = {.w = argument(frame, 0)->data, .panels = result(frame, 0)->data,
               .depth = depth, .columns = columns};
  return run_team(frame, pack, &p, 1, count_panels(columns), depth * columns / LEAST_PACK);
}

/* W [K, N] -> its panels [N / 16, K, 16]. */
XLA_FFI_Error *pack(XLA_FFI_CallFrame *frame) {
  if (answers_version(frame)) return NULL;
  const int64_t *size = argument(frame, 0)->dims;
  return run_packing(frame, pack_columns, size[0], size[1]);
}

/* W [N, K] -> the panels of W^T, [N / 16, K, 16]. */
XLA_FFI_Error *pack_transposed(XLA_FFI_CallFrame *frame) {
  if (answers_version(frame)) return NULL;
  const int64_t *size = argument(frame, 0)->dims;
  return run_packing(frame, pack_rows, size[1], size[0]);
}
