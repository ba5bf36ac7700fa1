/* The softmax of a row of logits while the row is in the cache: its normaliser, and the gradient.

       log Z = most + log sum_v e^(s_v - most)       s = logits + b
       dL/ds = weight * (e^(s - log Z) - onehot)     of weight * nll

   XLA passes over all rows for the maximum, the exponentials, their sum and the gradient, each time
   from memory: at V = 33,000 a third as long as the products. A row is one thread's, and its sum is
   taken in one order, so that nothing depends on how many there are. */

#include <math.h>

#include "team.h"
#include "vectors.h"

#define LEAST_WORDS 20000L /* worth a thread of their own: some 10 us */

typedef struct {
  const float *logits, *b, *weights; /* [rows, words], [words], [rows] */
  const int32_t *targets;            /* [rows] */
  float *log_z, *gradient;           /* [rows]; [rows, words], may be `logits`; or NULL */
  long rows, words, pieces;
} Softmax;

static float largest(const float *logits, const float *b, long words) {
  const long whole = words / LANES * LANES;
  lanes most = (lanes){0} - INFINITY;
  for (long v = 0; v < whole; v += LANES) {
    const lanes s = load(logits + v) + load(b + v);
    most = pick(s > most, s, most);
  }
  float found = -INFINITY;
  for (long lane = 0; lane < LANES; lane++) found = most[lane] > found ? most[lane] : found;
  for (long v = whole; v < words; v++) found = logits[v] + b[v] > found ? logits[v] + b[v] : found;
  return found;
}

/* Where `to` is not NULL the exponentials are written there. */
static float sum_exponentials(const float *logits, const float *b, float most, long words,
                              float *to) {
  const long whole = words / LANES * LANES;
  lanes sums = {0};
  for (long v = 0; v < whole; v += LANES) {
    const lanes e = exponential(load(logits + v) + load(b + v) - most);
    if (to) store(to + v, e);
    sums += e;
  }
  double sum = 0;
  for (long lane = 0; lane < LANES; lane++) sum += sums[lane];
  if (whole < words) { /* a vector that is filled up with what adds nothing */
    float rest[LANES];
    for (long v = 0; v < LANES; v++)
      rest[v] = whole + v < words ? logits[whole + v] + b[whole + v] - most : -INFINITY;
    store(rest, exponential(load(rest)));
    for (long v = 0; v < words - whole; v++) {
      sum += rest[v];
      if (to) to[whole + v] = rest[v];
    }
  }
  return (float)sum;
}

static void finish_row(const Softmax *p, long row) {
  const float *logits = p->logits + row * p->words;
  float *gradient = p->gradient ? p->gradient + row * p->words : NULL;
  const float most = largest(logits, p->b, p->words);
  if (!isfinite(most)) { /* no softmax: a logit is infinite, or none is a number above -inf */
    float log_z = most;
    for (long v = 0; v < p->words; v++)
      if (isnan(logits[v] + p->b[v])) log_z = NAN;
    p->log_z[row] = log_z;
    for (long v = 0; gradient && v < p->words; v++) gradient[v] = NAN;
    return;
  }
  const float sum = sum_exponentials(logits, p->b, most, p->words, gradient);
  p->log_z[row] = most + logf(sum);
  if (!gradient) return;
  const float weight = p->weights[row], scale = weight / sum;
  for (long v = 0; v < p->words; v++) gradient[v] *= scale;
  const int32_t target = p->targets[row];
  if (target >= 0 && target < p->words) gradient[target] -= weight;
}

static void work_on_rows(void *job, long step, long piece) {
  const Softmax *p = job;
  (void)step;
  for (long row = p->rows * piece / p->pieces; row < p->rows * (piece + 1) / p->pieces; row++)
    finish_row(p, row);
}

static XLA_FFI_Error *run_softmax(const XLA_FFI_CallFrame *frame, Softmax *p) {
  const XLA_FFI_Buffer *logits = argument(frame, 0), *b = argument(frame, 1);
  p->logits = logits->data, p->b = b->data;
  p->rows = logits->dims[0], p->words = logits->dims[1];
  int fit = b->dims[0] == p->words;
  for (long k = 2; k < frame->args.size; k++) fit &= argument(frame, k)->dims[0] == p->rows;
  if (!fit)
    return fail(frame->api, XLA_FFI_Error_Code_INVALID_ARGUMENT, "shapes of a softmax disagree");
  p->pieces = least(64, p->rows);
  return run_team(frame, work_on_rows, p, 1, p->pieces, p->rows * p->words / LEAST_WORDS);
}

/* logits [rows, V], b [V] -> log Z [rows]. */
XLA_FFI_Error *log_normalizer(XLA_FFI_CallFrame *frame) {
  if (answers_version(frame)) return NULL;
  XLA_FFI_Error *error = check_types(frame, 2);
  if (error) return error;
  Softmax p = {.log_z = result(frame, 0)->data};
  return run_softmax(frame, &p);
}

/* logits [rows, V], b [V], weights [rows], targets int32 [rows] -> dL/ds [rows, V], log Z [rows]. */
XLA_FFI_Error *softmax_gradient(XLA_FFI_CallFrame *frame) {
  if (answers_version(frame)) return NULL;
  XLA_FFI_Error *error = check_types(frame, 3);
  if (error) return error;
  Softmax p = {.weights = argument(frame, 2)->data, .targets = argument(frame, 3)->data,
               .gradient = result(frame, 0)->data, .log_z = result(frame, 1)->data};
  return run_softmax(frame, &p);
}
