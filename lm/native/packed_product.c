/* u = x W for few rows of x and a W that many calls share: the product inside a recurrence.

   W [K, N] is packed once, in panels of 16 columns, [N / 16, K, 16], the last one filled up with
   zeros. A panel is then read once for all rows of x. Each sum is one thread's: u does not depend
   on how many there are, nor on the other rows. */

#include "team.h"
#include "tile.h"

#define LEAST_WORK 500000L /* multiplications worth a thread of their own: some 10 us */
#define COST 128           /* columns of u that take as long as fetching x from another core */
#define LEAST_PACK 100000L /* numbers to pack that are worth a thread of their own */

typedef struct {
  const float *x, *panels; /* [rows, depth], [panels, depth, 16] */
  float *u, *turned;       /* [rows, columns]; x block by block, [depth, rows] each */
  long rows, depth, columns, pieces;
} Product;

static void turn_blocks(const Product *p, long from, long to) {
  for (long block = from; block < to; block++) {
    const long first = block_start(p->rows, block), rows = block_start(p->rows, block + 1) - first;
    turn(rows, rows, p->depth, p->x + first * p->depth, p->depth, p->turned + first * p->depth);
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

static void pack_panel(void *job, long step, long panel) {
  const Packing *p = job;
  const long column = panel * COLUMNS, count = least(COLUMNS, p->columns - column);
  (void)step;
  pack_columns(p->w + column, p->columns, p->depth, count, p->panels + column * p->depth);
}

static void pack_transposed_panel(void *job, long step, long panel) {
  const Packing *p = job;
  const long row = panel * COLUMNS, count = least(COLUMNS, p->columns - row);
  (void)step;
  pack_rows(p->w + row * p->depth, p->depth, count, p->panels + row * p->depth);
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
  return run_packing(frame, pack_panel, size[0], size[1]);
}

/* W [N, K] -> the panels of W^T, [N / 16, K, 16]. */
XLA_FFI_Error *pack_transposed(XLA_FFI_CallFrame *frame) {
  if (answers_version(frame)) return NULL;
  const int64_t *size = argument(frame, 0)->dims;
  return run_packing(frame, pack_transposed_panel, size[1], size[0]);
}
