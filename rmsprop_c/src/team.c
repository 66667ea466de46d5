#include "team.h"

#include "threads.h"

rmsprop_policy rmsprop_team_policy = {
    .persistent_minimum = 1 << 15,
    .one_shot_minimum = 1 << 22,
    .one_shot_share = 1 << 21,
    .requested = 0,
    .processors = 1,
};

enum {
    TRIAL_STEPS = 4, /* long steps that alternate before the first choice */
    TRIAL_GAP = 32,  /* from there to the next trial; doubled where it lost */
    LARGEST_GAP = 1 << 16
};

static int available = 1;   /* so many threads were seen to live at once */
static int too_many = 1025; /* and so many could not */

static int64_t smaller(int64_t x, int64_t y)
{
    return x < y ? x : y;
}

void rmsprop_team_begin(rmsprop_trials *trials)
{
    trials->next_trial = TRIAL_STEPS + TRIAL_GAP;
    trials->gap = TRIAL_GAP;
}

int rmsprop_team_size(int64_t elements, int *one_shot)
{
    const rmsprop_policy *policy = &rmsprop_team_policy;
    int64_t count = policy->requested;
    *one_shot = policy->requested == 0 || rmsprop_threads_forked();
    if (elements < (*one_shot ? policy->one_shot_minimum : policy->persistent_minimum)) {
        return 1;
    }
    if (count == 0) {
        count = smaller(elements / policy->one_shot_share,
                        smaller(policy->processors, rmsprop_threads_limit()));
    }
    if (rmsprop_threads_openmp() == 0 || count <= 1 || count >= too_many) {
        return 1;
    }
    if (count > available) {
        if (!rmsprop_threads_available((int)count)) {
            too_many = (int)count;
            return 1;
        }
        available = (int)count;
    }
    return (int)count;
}

/* A team halves the time where the processors are idle, but BLAS workers spin for up to 26 ms after
 * a matmul (OpenBLAS), and threads that compete with them lose more than they gain. */
void rmsprop_team_perform_as_proves_faster(rmsprop_trials *trials, rmsprop_job *job)
{
    double *pace = trials->pace;
    const int64_t n = trials->steps;
    const int first = n < TRIAL_STEPS, trial = n >= trials->next_trial;
    int team = first ? (int)(n % 2) : pace[1] < 0.95 * pace[0];
    const double start = rmsprop_threads_clock();
    if (trial) {
        team = !team;
    }
    team = team && rmsprop_threads_run(rmsprop_perform, job);
    if (!team) {
        job->shares = 1;
        rmsprop_perform(job);
    }
    const double found = (rmsprop_threads_clock() - start) / (double)job->elements;
    if (trial) { /* the more often it has lost, the seldomer it is tried */
        trials->gap = found < pace[!team] ? TRIAL_GAP : smaller(2 * trials->gap, LARGEST_GAP);
        trials->next_trial = n + trials->gap;
    }
    if (trial || first) {
        pace[team] = found;
    } else {
        pace[team] += 0.25 * (found - pace[team]);
    }
    trials->steps = n + 1;
}
