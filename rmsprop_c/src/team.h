/* How many threads a step gets, and whether a team of its own proves faster: policy. The mechanism
 * is in threads.h. */
#ifndef RMSPROP_TEAM_H
#define RMSPROP_TEAM_H

#include "step.h"

/* Elements of a step from which each way pays, and what was asked for and found: see
 * docs/performance.md for the measurements. One for the process; set it under the GIL. */
typedef struct {
    int64_t persistent_minimum; /* a team that was asked for and stays awake */
    int64_t one_shot_minimum;   /* by default: a team of its own, for this one step, where that */
    int64_t one_shot_share;     /* proves faster; so many elements for each thread */
    int requested;              /* set_num_threads, RMSPROP_C_NUM_THREADS; 0: default policy */
    int processors;             /* affinity and container quota, as found at import */
} rmsprop_policy;

extern rmsprop_policy rmsprop_team_policy;

/* What an optimizer has found out about its long steps, those that could have a team of their own.
 */
typedef struct {
    int64_t steps;
    int64_t next_trial, gap;
    double pace[2]; /* seconds per element of the latest ones, alone and in a team */
} rmsprop_trials;

/* Begins to find out. */
void rmsprop_team_begin(rmsprop_trials *trials);

/* How many threads a step of so many elements gets, and whether in a one-shot team. Call it under
 * the GIL. */
int rmsprop_team_size(int64_t elements, int *one_shot);

/* Performs a job alone or in a one-shot team, as has proved faster. */
void rmsprop_team_perform_as_proves_faster(rmsprop_trials *trials, rmsprop_job *job);

/* Performs a job: alone, in the persistent team, or as has proved faster. */
static inline void rmsprop_team_perform(rmsprop_trials *trials, rmsprop_job *job)
{
    if (job->one_shot && job->shares > 1) {
        rmsprop_team_perform_as_proves_faster(trials, job);
    } else {
        rmsprop_perform(job);
    }
}

#endif
