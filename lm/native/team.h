/* Threads that take the pieces of one step after another, all of a step before any of the next.

   The threads are XLA's own, and nothing is known of when a helper comes, or whether it does: so
   pieces are taken, not given, the caller alone can do all of them, and a helper may leave at any
   time. Each thread begins at a part of the list of its own, so that two seldom ask for the same
   piece. Which of them does it makes no difference to what comes out. */

#ifndef LM_NATIVE_TEAM_H_
#define LM_NATIVE_TEAM_H_

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "xla/ffi/api/c_api.h"

#define PATIENCE 20000 /* looks at what others have not finished, before a helper leaves */

typedef void Piece(void *job, long step, long piece);

typedef struct {
  Piece *work;
  void *job; /* the caller's: there as long as a piece is left to be taken */
  long steps, pieces, threads;
  atomic_long done;    /* pieces, over all steps */
  atomic_long joined;  /* threads so far */
  atomic_long helpers; /* that are here, or have been sent for */
  atomic_long users;   /* the last one frees the team: a helper may come when all is over */
  atomic_long taken[]; /* of each piece: steps in which it was */
} Team;

static void leave(Team *team) {
  if (atomic_fetch_sub(&team->users, 1) == 1) free(team);
}

/* Whether so many pieces are done, after a while; the caller gives up its processor, and waits on. */
static int wait_for(Team *team, long done, int is_caller) {
  for (long looks = 0; atomic_load_explicit(&team->done, memory_order_acquire) < done; looks++) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (looks < PATIENCE) continue;
    if (!is_caller) return 0;
    sched_yield();
  }
  return 1;
}

static XLA_FFI_Error *fail(const XLA_FFI_Api *api, XLA_FFI_Error_Code code, const char *message) {
  XLA_FFI_Error_Create_Args args = {.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE,
                                    .message = message,
                                    .errc = code};
  return api->XLA_FFI_Error_Create(&args);
}

/* Whether XLA did what it was asked to; what it complains of otherwise is thrown away. */
static int succeeded(const XLA_FFI_Api *api, XLA_FFI_Error *error) {
  if (!error) return 1;
  XLA_FFI_Error_Destroy_Args args = {.struct_size = XLA_FFI_Error_Destroy_Args_STRUCT_SIZE,
                                     .error = error};
  api->XLA_FFI_Error_Destroy(&args);
  return 0;
}

static long count_threads(const XLA_FFI_CallFrame *frame) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args args = {
      .struct_size = XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE,
      .ctx = frame->ctx,
      .num_threads = &threads};
  return succeeded(frame->api, frame->api->XLA_FFI_ThreadPool_NumThreads(&args)) ? threads : 1;
}

static void help(void *data);

/* As many helpers as there may be: some have left, if others took long over a step. One that XLA
   refuses stays counted: it is not asked for again. */
static void recruit(Team *team, const XLA_FFI_CallFrame *frame) {
  while (atomic_load_explicit(&team->helpers, memory_order_relaxed) < team->threads - 1) {
    atomic_fetch_add(&team->helpers, 1);
    atomic_fetch_add(&team->users, 1);
    XLA_FFI_ThreadPool_Schedule_Args args = {
        .struct_size = XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE,
        .ctx = frame->ctx,
        .task = help,
        .data = team};
    if (!succeeded(frame->api, frame->api->XLA_FFI_ThreadPool_Schedule(&args))) leave(team);
  }
}

/* `frame`: the caller's, and NULL for a helper. */
static void take_part(Team *team, const XLA_FFI_CallFrame *frame) {
  const long pieces = team->pieces;
  const long home = atomic_fetch_add(&team->joined, 1) % team->threads * pieces / team->threads;
  for (long step = atomic_load(&team->done) / pieces; step < team->steps; step++) {
    if (frame) recruit(team, frame);
    long own = 0;
    for (long k = 0; k < pieces; k++) {
      const long piece = (home + k) % pieces;
      long untaken = step;
      if (atomic_load_explicit(&team->taken[piece], memory_order_relaxed) == step &&
          atomic_compare_exchange_strong(&team->taken[piece], &untaken, step + 1)) {
        team->work(team->job, step, piece);
        own++;
      }
    }
    atomic_fetch_add(&team->done, own);
    if (!frame && step + 1 == team->steps) return;
    if (!wait_for(team, (step + 1) * pieces, frame != NULL)) return;
  }
}

static void help(void *data) {
  Team *team = data;
  take_part(team, NULL);
  atomic_fetch_sub(&team->helpers, 1);
  leave(team);
}

/* Do work(job, step, piece) for all pieces of all steps, with at most so many threads. */
static XLA_FFI_Error *run_team(const XLA_FFI_CallFrame *frame, Piece *work, void *job, long steps,
                               long pieces, long most_threads) {
  if (steps < 1 || pieces < 1) return NULL;
  long threads = most_threads > 1 ? count_threads(frame) : 1;
  if (threads > most_threads) threads = most_threads;
  if (threads > pieces) threads = pieces;
  if (threads < 1) threads = 1;
  Team *team = calloc(1, sizeof *team + (size_t)pieces * sizeof(atomic_long));
  if (!team) return fail(frame->api, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "no memory");
  team->work = work, team->job = job;
  team->steps = steps, team->pieces = pieces, team->threads = threads;
  atomic_store(&team->users, 1);
  take_part(team, frame);
  leave(team);
  return NULL;
}

/* Whether XLA asks for the version of the interface that a function was compiled for: answered. */
static int answers_version(const XLA_FFI_CallFrame *frame) {
  if (!frame->extension_start || frame->extension_start->type != XLA_FFI_Extension_Metadata)
    return 0;
  XLA_FFI_Metadata *about = ((XLA_FFI_Metadata_Extension *)frame->extension_start)->metadata;
  about->api_version.major_version = XLA_FFI_API_MAJOR;
  about->api_version.minor_version = XLA_FFI_API_MINOR;
  return 1;
}

/* An error where one of the first arguments is not float32. */
static XLA_FFI_Error *check_types(const XLA_FFI_CallFrame *frame, long arguments) {
  for (long k = 0; k < arguments; k++)
    if (((const XLA_FFI_Buffer *)frame->args.args[k])->dtype != XLA_FFI_DataType_F32)
      return fail(frame->api, XLA_FFI_Error_Code_INVALID_ARGUMENT, "wanted float32 arrays");
  return NULL;
}

static const XLA_FFI_Buffer *argument(const XLA_FFI_CallFrame *frame, long k) {
  return frame->args.args[k];
}

static const XLA_FFI_Buffer *result(const XLA_FFI_CallFrame *frame, long k) {
  return frame->rets.rets[k];
}

#endif
