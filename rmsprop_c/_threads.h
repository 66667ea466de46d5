/* What the package asks of the operating system's threads. Without POSIX threads (Windows) there is
 * no fork to guard against, and work that wanted a fresh thread runs in the caller's. */
#ifndef RMSPROP_THREADS_H
#define RMSPROP_THREADS_H

/* Registers the fork handlers. Call once, before any other function here. */
void rmsprop_threads_init(void);

/* Has this process been forked, from whatever parent, without an exec since? OpenMP's teams of the
 * parent are gone there, and libgomp waits for them for ever when the same thread uses them again.
 */
int rmsprop_threads_forked(void);

/* Steps that run without the GIL are counted in and out. A fork waits until none is inside, and
 * holds new ones back meanwhile: a child never sees half a step. */
void rmsprop_threads_enter(void);
void rmsprop_threads_leave(void);

/* Can this many threads with OpenMP's stack size live at once? (libgomp ends the process if not.)
 */
int rmsprop_threads_available(int count);

/* Runs function(argument) in a new thread and joins it. Returns 0 if there is no thread to be had;
 * nothing has run then. An OpenMP team that the function makes ends with the thread. */
int rmsprop_threads_run(void (*function)(void *), void *argument);

/* Seconds since some moment, for durations. */
double rmsprop_threads_clock(void);

#endif
