/* Threads that share a loop: the one that calls, and helpers that stay.

   A layer of a decoder is a dozen loops of some tens of microseconds, one after the other. OpenMP
   either has its threads sleep between them, and waking costs as much as a loop, or has them spin
   without end beside the threads that serve clients; and it waits for every thread at the end of a
   loop, also for one that the system has not let run. Here a helper spins for a moment, then
   sleeps; and a loop ends when its work is done: a helper that comes late finds it closed, and
   nobody has waited for it.

   Pieces of a loop are claimed one after the other. Results do not depend on who computed what. */

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

/* Computes items *first* to *last* (exclusive); *thread* numbers who does, below `threads`. */
typedef void (*Piece)(const void *what, int64_t first, int64_t last, int thread);

#define MAX_HELPERS 255
#define SPIN_NANOSECONDS 200000 /* about what lies between two loops of a step at most */
#define CLOSED (-1)

typedef struct {
  pthread_mutex_t busy; /* held by the thread whose loop it is */
  pthread_mutex_t lock; /* for sleeping */
  pthread_cond_t wake;
  int helpers;          /* started; changed by the holder of `busy` */
  Piece piece;
  const void *what;
  int64_t total, run, threads;
  _Atomic int64_t next;
  _Atomic int64_t inside;  /* helpers in the loop, or CLOSED */
  _Atomic uint64_t rounds; /* loops begun */
  _Atomic int sleeping;
} Team;

static Team team = {.busy = PTHREAD_MUTEX_INITIALIZER,
                    .lock = PTHREAD_MUTEX_INITIALIZER,
                    .wake = PTHREAD_COND_INITIALIZER,
                    .inside = CLOSED};

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

static int64_t nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void claim_pieces(int thread) {
  for (;;) {
    int64_t first = atomic_fetch_add(&team.next, team.run);
    if (first >= team.total) return;
    int64_t last = first + team.run < team.total ? first + team.run : team.total;
    team.piece(team.what, first, last, thread);
  }
}

/* Take part in the loop that is open, if one is that has room for helper *number*. */
static void help(int number) {
  int64_t inside = atomic_load(&team.inside);
  do {
    if (inside == CLOSED) return;
  } while (!atomic_compare_exchange_weak(&team.inside, &inside, inside + 1));
  if (number < team.threads) claim_pieces(number);
  atomic_fetch_sub(&team.inside, 1);
}

/* Until a loop has begun after the *seen*-th; how many have. */
static uint64_t next_round(uint64_t seen) {
  int64_t until = nanoseconds() + SPIN_NANOSECONDS;
  do {
    for (int i = 0; i < 64; i++) {
      uint64_t rounds = atomic_load(&team.rounds);
      if (rounds != seen) return rounds;
      relax();
    }
    sched_yield(); /* whoever else wants this core has it */
  } while (nanoseconds() < until);
  pthread_mutex_lock(&team.lock);
  atomic_fetch_add(&team.sleeping, 1);
  while (atomic_load(&team.rounds) == seen) pthread_cond_wait(&team.wake, &team.lock);
  atomic_fetch_sub(&team.sleeping, 1);
  pthread_mutex_unlock(&team.lock);
  return atomic_load(&team.rounds);
}

static void *helper(void *number) {
  uint64_t seen = 0;
  for (;;) {
    seen = next_round(seen);
    help((int)(intptr_t)number);
  }
  return NULL;
}

static void start_helpers(int64_t wanted) {
  pthread_attr_t detached;
  if (pthread_attr_init(&detached)) return;
  pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
  while (team.helpers < wanted) {
    pthread_t thread;
    intptr_t number = team.helpers + 1;
    if (pthread_create(&thread, &detached, helper, (void *)number)) break; /* fewer will do */
    team.helpers++;
  }
  pthread_attr_destroy(&detached);
}

/* Items 0 to *total*, *run* neighbours at a time, by at most *threads* threads; returns when all
   are done. While another thread's loop is shared out, this one is its caller's alone. */
static void share_out(int64_t total, int64_t run, int64_t threads, Piece piece, const void *what) {
  if (threads > MAX_HELPERS + 1) threads = MAX_HELPERS + 1;
  if (threads < 2 || total <= run || pthread_mutex_trylock(&team.busy)) {
    if (total > 0) piece(what, 0, total, 0);
    return;
  }
  if (team.helpers < threads - 1) start_helpers(threads - 1);
  team.piece = piece;
  team.what = what;
  team.total = total;
  team.run = run;
  team.threads = threads;
  atomic_store(&team.next, 0);
  atomic_store(&team.inside, 0);
  atomic_fetch_add(&team.rounds, 1);
  if (atomic_load(&team.sleeping)) {
    pthread_mutex_lock(&team.lock);
    pthread_cond_broadcast(&team.wake);
    pthread_mutex_unlock(&team.lock);
  }
  claim_pieces(0);
  int64_t nobody = 0;
  for (int spins = 0; !atomic_compare_exchange_weak(&team.inside, &nobody, CLOSED); nobody = 0) {
    if (++spins % 1024) relax();
    else sched_yield();
  }
  pthread_mutex_unlock(&team.busy);
}
