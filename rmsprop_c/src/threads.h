/* What the package asks of OpenMP and of the operating system's threads. Without POSIX threads
 * (Windows) there is no fork to guard against, and work that wants a new thread runs in the
 * caller's. */
#ifndef RMSPROP_THREADS_H
#define RMSPROP_THREADS_H

#include <stdint.h>

/* Registers the fork handlers. Call once, before any other function here. */
void rmsprop_threads_init(void);

/* The version of OpenMP, a date like 201511; 0 without it. */
int rmsprop_threads_openmp(void);

/* How many threads OpenMP would use in this thread: OMP_NUM_THREADS, or what a library has set. */
int rmsprop_threads_limit(void);

/* Calls work(argument, k) for each k in [0, shares), in a team of that many threads, each in the
 * floating-point environment of the contract. They are iterations of a loop, so each is done once
 * however many threads OpenMP really gives. (Cython's prange asks which thread holds the GIL, and
 * before Python 3.12 gets a wrong answer in threads of our own once there are subinterpreters.) */
void rmsprop_parallel_for(int shares, void (*work)(const void *, int), const void *argument);

/* Has this process been forked, from whatever parent, without an exec since? OpenMP's teams of the
 * parent are gone there, and libgomp waits for them indefinitely when the same thread uses them
 * again.
 */
int rmsprop_threads_forked(void);

/* How many forks lie between this process and the import: what was under way before may have been
 * the business of threads that are not here. */
int rmsprop_threads_forks(void);

/* The number of the calling thread. The system's may come again: a thread that begins where another
 * has ended, or has stayed behind in the parent, often gets that one's. Ours don't. */
uint64_t rmsprop_threads_self(void);

/* The number of the thread that made the latest fork; 0 where there was none. */
uint64_t rmsprop_threads_survivor(void);

/* Steps that run without the GIL are counted in and out. A fork waits until none is inside, and
 * holds new ones back meanwhile: a child never sees half a step. */
void rmsprop_fork_gate_enter(void);
void rmsprop_fork_gate_leave(void);

/* Can this many threads with OpenMP's stack size live at once? (libgomp ends the process if not.)
 */
int rmsprop_threads_available(int count);

/* Runs function(argument) in a new thread and joins it. Returns 0 if there is no thread to be had;
 * nothing has run then. An OpenMP team that the function makes ends with the thread. */
int rmsprop_threads_run(void (*function)(void *), void *argument);

/* Sets a flag that several threads may set at once. */
static inline void rmsprop_threads_flag(int *flag)
{
#ifdef __GNUC__
    __atomic_store_n(flag, 1, __ATOMIC_RELAXED);
#else
    *(volatile int *)flag = 1;
#endif
}

/* Seconds since some moment, for durations. */
double rmsprop_threads_clock(void);

#endif
