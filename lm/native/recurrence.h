/* A cell over a whole sequence, forward and backward, each as one call.

   Before this comes the code of the cell, written by cell_code.py: its sizes, and for 16 units of a
   row `linearize`, a step and its derivative coefficients, and `pull_back`, a step back.

   A piece is 16 units: their products, gates, states and tape of all rows are one thread's, done
   while they are in its registers and first cache. Between two steps nothing passes from piece to
   piece but h_t, or on the way back dL/du_t, turned as the next product wants it. Every sum is
   taken in one order, whoever takes it. */

#include "team.h"
#include "tile.h"

#define LEAST_STEP_WORK 1000000L /* multiplications of a step worth a thread of their own */

/* [T, rows, parts H], or of what all rows share [T, 1, parts H]. */
typedef struct {
  float *x;
  long rows, parts;
} Sequence;

typedef struct {
  long steps, rows, hidden;
  const float *w;            /* W_h [H, GATES H] */
  float *panels, *turned[2]; /* W_h or W_h^T packed; what products read, of two steps in turn */
} Loop;

typedef struct {
  Loop loop;
  Sequence z, h, tape[TAPE_ARRAYS];
  const float *vectors[VECTOR_ARRAYS + 1], *first[FIELDS]; /* [n H]; s_0 [B, H] */
  float *last[FIELDS];                                     /* s_t [B, H] */
  int is_taped;
} Forward;

typedef struct {
  Loop loop;
  Sequence tape[TAPE_ARRAYS], d_h, d_z, d_u; /* d_h: dL/dh_t from above */
  const float *d_last[FIELDS];               /* dL/ds_T beside it [B, H] */
  float *d_first[FIELDS], *d_vectors[VECTOR_ARRAYS + 1];
} Backward;

static inline float *find(const Sequence *a, const Loop *loop, long t, long row, long part) {
  return a->x + ((t * a->rows + (a->rows == 1 ? 0 : row)) * a->parts + part) * loop->hidden;
}

static inline float *find_tape(const Sequence *tape, const Loop *loop, long t, long row, int part) {
  return find(&tape[TAPE_ARRAY[part]], loop, t, row, TAPE_PLACE[part]);
}

static inline void fetch(const Sequence *a, const Loop *loop, long t, long row, long unit) {
  for (long part = 0; part < a->parts; part++)
    __builtin_prefetch(find(a, loop, t, row, part) + unit, 1, 2);
}

/* 16 units of all rows at step t. `count` and `is_taped` are constants wherever this is inlined. */
static inline __attribute__((always_inline)) void run_units(const Forward *a, long t, long unit,
                                                            const long count, const int is_taped) {
  const Loop *loop = &a->loop;
  const long hidden = loop->hidden;
  const float *panel = loop->panels + unit * GATES * hidden;
  float sums[GATES][ROWS * COLUMNS], tile[ROWS * COLUMNS];
  for (long block = 0; block < count_blocks(loop->rows); block++) {
    const long first = block_start(loop->rows, block);
    const long rows = block_start(loop->rows, block + 1) - first;
    for (long row = first; row < first + rows; row++) {
      fetch(&a->z, loop, t, row, unit);
      fetch(&a->h, loop, t, row, unit);
      for (int k = 0; is_taped && k < TAPE_ARRAYS; k++) fetch(&a->tape[k], loop, t, row, unit);
    }
    for (int k = 0; k < GATES; k++)
      multiply(rows, hidden, loop->turned[t % 2] + first * hidden, panel + k * hidden * COLUMNS,
               sums[k]);
    for (long r = 0; r < rows; r++)
      for (long lane = 0; lane < COLUMNS; lane += LANES) {
        const long row = first + r, at = unit + lane, left = count - lane;
        lanes z[GATES], u[GATES], v[VECTOR_PARTS + 1], s[FIELDS], next[FIELDS], tape[TAPE_PARTS];
        UNROLL
        for (int k = 0; k < GATES; k++) {
          z[k] = load_some(find(&a->z, loop, t, row, k) + at, left);
          u[k] = load(sums[k] + r * COLUMNS + lane);
        }
        UNROLL
        for (int k = 0; k < FIELDS; k++) s[k] = load_some(a->last[k] + row * hidden + at, left);
        UNROLL
        for (int k = 0; k < VECTOR_PARTS; k++)
          v[k] = load_some(a->vectors[VECTOR_ARRAY[k]] + VECTOR_PLACE[k] * hidden + at, left);
        linearize(v, s, z, u, next, tape);
        UNROLL
        for (int k = 0; k < FIELDS; k++) store_some(a->last[k] + row * hidden + at, next[k], left);
        store_some(find(&a->h, loop, t, row, 0) + at, next[H_FIELD], left);
        store(tile + r * COLUMNS + lane, next[H_FIELD]);
        UNROLL
        for (int k = 0; is_taped && k < TAPE_PARTS; k++)
          store_some(find_tape(a->tape, loop, t, row, k) + at, tape[k], left);
      }
    float *next = loop->turned[(t + 1) % 2] + first * hidden + unit * rows;
    turn(rows, rows, count, tile, COLUMNS, next);
  }
}

/* Step 0 packs W_h and reads s_0; step t + 1 makes s_{t+1} from s_t. */
static void step_forward(void *job, long step, long piece) {
  const Forward *a = job;
  const Loop *loop = &a->loop;
  const long hidden = loop->hidden, unit = piece * COLUMNS, count = least(COLUMNS, hidden - unit);
  if (step > 0) {
    if (count < COLUMNS)
      run_units(a, step - 1, unit, count, a->is_taped);
    else if (a->is_taped)
      run_units(a, step - 1, unit, COLUMNS, 1);
    else
      run_units(a, step - 1, unit, COLUMNS, 0);
    return;
  }
  for (int k = 0; k < GATES; k++)
    pack_columns(loop->w + k * hidden + unit, GATES * hidden, hidden, count,
                 loop->panels + (unit * GATES + k * COLUMNS) * hidden);
  for (int k = 0; k < FIELDS; k++)
    for (long row = 0; row < loop->rows; row++)
      memcpy(a->last[k] + row * hidden + unit, a->first[k] + row * hidden + unit,
             (size_t)count * sizeof(float));
  for (long block = 0; block < count_blocks(loop->rows); block++) {
    const long first = block_start(loop->rows, block);
    const long rows = block_start(loop->rows, block + 1) - first;
    turn(rows, rows, count, a->first[H_FIELD] + first * hidden + unit, hidden,
         loop->turned[0] + first * hidden + unit * rows);
  }
}

/* 16 units of all rows at step t; at t = -1 what is left is dL/ds_0. */
static inline __attribute__((always_inline)) void pull_units(const Backward *a, long t, long unit,
                                                             const long count) {
  const Loop *loop = &a->loop;
  const long hidden = loop->hidden, depth = GATES * hidden, step = loop->steps - 1 - t;
  const float *panel = loop->panels + unit * depth;
  float sums[ROWS * COLUMNS], tiles[GATES][ROWS * COLUMNS];
  for (long block = 0; block < count_blocks(loop->rows); block++) {
    const long first = block_start(loop->rows, block);
    const long rows = block_start(loop->rows, block + 1) - first;
    for (long row = first; t >= 0 && row < first + rows; row++) {
      fetch(&a->d_h, loop, t, row, unit);
      for (int k = 0; k < TAPE_ARRAYS; k++) fetch(&a->tape[k], loop, t, row, unit);
    }
    if (step > 0)
      multiply(rows, depth, loop->turned[step % 2] + first * depth, panel, sums);
    else
      memset(sums, 0, sizeof sums);
    lanes d_vectors[VECTOR_PARTS + 1][TILE_VECTORS];
    memset(d_vectors, 0, sizeof d_vectors);
    for (long r = 0; r < rows; r++)
      for (long lane = 0; lane < COLUMNS; lane += LANES) {
        const long row = first + r, at = unit + lane, left = count - lane;
        float *d_h = a->d_first[H_FIELD] + row * hidden + at;
        const lanes back = load_some(d_h, left) + load(sums + r * COLUMNS + lane);
        if (t < 0) {
          store_some(d_h, back, left);
          continue;
        }
        lanes tape[TAPE_PARTS], d_next[FIELDS], d_s[FIELDS], d_z[GATES], d_u[GATES];
        lanes d_v[VECTOR_PARTS + 1];
        UNROLL
        for (int k = 0; k < FIELDS; k++)
          d_next[k] = load_some(a->d_first[k] + row * hidden + at, left);
        d_next[H_FIELD] = back + load_some(find(&a->d_h, loop, t, row, 0) + at, left);
        UNROLL
        for (int k = 0; k < TAPE_PARTS; k++)
          tape[k] = load_some(find_tape(a->tape, loop, t, row, k) + at, left);
        pull_back(tape, d_next, d_s, d_z, d_u, d_v);
        UNROLL
        for (int k = 0; k < FIELDS; k++)
          store_some(a->d_first[k] + row * hidden + at, d_s[k], left);
        UNROLL
        for (int k = 0; k < GATES; k++) {
          store_some(find(&a->d_z, loop, t, row, k) + at, d_z[k], left);
          if (!IS_SUM) store_some(find(&a->d_u, loop, t, row, k) + at, d_u[k], left);
          store(tiles[k] + r * COLUMNS + lane, IS_SUM ? d_z[k] : d_u[k]);
        }
        for (int k = 0; k < VECTOR_PARTS; k++) d_vectors[k][lane / LANES] += d_v[k];
      }
    if (t < 0) continue;
    for (int k = 0; k < VECTOR_PARTS; k++)
      for (long lane = 0; lane < COLUMNS; lane += LANES) {
        float *sum = a->d_vectors[VECTOR_ARRAY[k]] + VECTOR_PLACE[k] * hidden + unit + lane;
        const long left = count - lane;
        store_some(sum, load_some(sum, left) + d_vectors[k][lane / LANES], left);
      }
    float *next = loop->turned[(step + 1) % 2] + first * depth + unit * rows;
    for (int k = 0; k < GATES; k++)
      turn(rows, rows, count, tiles[k], COLUMNS, next + k * hidden * rows);
  }
}

/* Step 0 packs W_h^T, reads dL/ds_T and goes back to T - 1; step s to T - 1 - s, until -1. */
static void step_backward(void *job, long step, long piece) {
  const Backward *a = job;
  const Loop *loop = &a->loop;
  const long hidden = loop->hidden, unit = piece * COLUMNS, count = least(COLUMNS, hidden - unit);
  if (step == 0) {
    const long depth = GATES * hidden;
    pack_rows(loop->w + unit * depth, depth, count, loop->panels + unit * depth);
    for (int k = 0; k < FIELDS; k++)
      for (long row = 0; row < loop->rows; row++)
        memcpy(a->d_first[k] + row * hidden + unit, a->d_last[k] + row * hidden + unit,
               (size_t)count * sizeof(float));
    for (int k = 0; k < VECTOR_PARTS; k++)
      memset(a->d_vectors[VECTOR_ARRAY[k]] + VECTOR_PLACE[k] * hidden + unit, 0,
             (size_t)count * sizeof(float));
  }
  if (count == COLUMNS)
    pull_units(a, loop->steps - 1 - step, unit, COLUMNS);
  else
    pull_units(a, loop->steps - 1 - step, unit, count);
}

static Sequence as_sequence(const XLA_FFI_Buffer *array, long parts, int is_shared) {
  return (Sequence){array->data, is_shared ? 1 : array->dims[1], parts};
}

/* `room` is memory to work in: panels, and twice what a product reads, `parts` H numbers a row. */
static Loop make_loop(const XLA_FFI_Buffer *h, const XLA_FFI_Buffer *w, const XLA_FFI_Buffer *room,
                      long parts) {
  Loop loop = {.steps = h->dims[0], .rows = h->dims[1], .hidden = h->dims[2], .w = w->data,
               .panels = room->data};
  loop.turned[0] = loop.panels + count_panels(loop.hidden) * COLUMNS * GATES * loop.hidden;
  loop.turned[1] = loop.turned[0] + loop.rows * parts * loop.hidden;
  return loop;
}

static XLA_FFI_Error *run_loop(const XLA_FFI_CallFrame *frame, Piece *work, void *job,
                               const Loop *loop) {
  const long threads = loop->rows * loop->hidden * GATES * loop->hidden / LEAST_STEP_WORK;
  return run_team(frame, work, job, loop->steps + 1, count_panels(loop->hidden), threads);
}

/* z [T, B, GATES H], s_0, vectors, W_h -> room, s_T, h [T, B, H] and, where asked for, the tape. */
XLA_FFI_Error *run_cell(XLA_FFI_CallFrame *frame) {
  if (answers_version(frame)) return NULL;
  XLA_FFI_Error *error = check_types(frame, frame->args.size);
  if (error) return error;
  const XLA_FFI_Buffer *h = result(frame, 1 + FIELDS), *room = result(frame, 0);
  Forward a = {.loop = make_loop(h, argument(frame, 1 + FIELDS + VECTOR_ARRAYS), room, 1),
               .z = as_sequence(argument(frame, 0), GATES, 0), .h = as_sequence(h, 1, 0),
               .is_taped = frame->rets.size > 2 + FIELDS};
  for (int k = 0; k < FIELDS; k++) {
    a.first[k] = argument(frame, 1 + k)->data;
    a.last[k] = result(frame, 1 + k)->data;
  }
  for (int k = 0; k < VECTOR_ARRAYS; k++) a.vectors[k] = argument(frame, 1 + FIELDS + k)->data;
  for (int k = 0; a.is_taped && k < TAPE_ARRAYS; k++)
    a.tape[k] = as_sequence(result(frame, 2 + FIELDS + k), TAPE_WIDTHS[k], TAPE_IS_SHARED[k]);
  return run_loop(frame, step_forward, &a, &a.loop);
}

/* The tape, dL/dh from above [T, B, H], dL/ds_T beside it, W_h
   -> room, dL/ds_0, dL/dvectors, dL/dz [T, B, GATES H] and, where it is another, dL/du. */
XLA_FFI_Error *pull_cell(XLA_FFI_CallFrame *frame) {
  if (answers_version(frame)) return NULL;
  XLA_FFI_Error *error = check_types(frame, frame->args.size);
  if (error) return error;
  const XLA_FFI_Buffer *d_h = argument(frame, TAPE_ARRAYS), *room = result(frame, 0);
  const XLA_FFI_Buffer *d_z = result(frame, 1 + FIELDS + VECTOR_ARRAYS);
  Backward a = {.loop = make_loop(d_h, argument(frame, TAPE_ARRAYS + 1 + FIELDS), room, GATES),
                .d_h = as_sequence(d_h, 1, 0), .d_z = as_sequence(d_z, GATES, 0)};
  if (!IS_SUM) a.d_u = as_sequence(result(frame, 2 + FIELDS + VECTOR_ARRAYS), GATES, 0);
  for (int k = 0; k < TAPE_ARRAYS; k++)
    a.tape[k] = as_sequence(argument(frame, k), TAPE_WIDTHS[k], TAPE_IS_SHARED[k]);
  for (int k = 0; k < FIELDS; k++) {
    a.d_last[k] = argument(frame, TAPE_ARRAYS + 1 + k)->data;
    a.d_first[k] = result(frame, 1 + k)->data;
  }
  for (int k = 0; k < VECTOR_ARRAYS; k++) a.d_vectors[k] = result(frame, 1 + FIELDS + k)->data;
  return run_loop(frame, step_backward, &a, &a.loop);
}
