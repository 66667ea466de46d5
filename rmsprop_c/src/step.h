/* One whole step of a model over raw buffers: tensors -> a flat range of bytes -> shares of it ->
 * kernels -> what was staged is copied back. It knows neither Python nor how many threads are good.
 *
 * A step is made in this order:
 *
 *     rmsprop_begin(job, settings, required, iterations, calls, scaled);
 *     rmsprop_begin_lining_up(job); for each tensor rmsprop_line_up(tensor, job);
 *     rmsprop_perform(job);
 *     if (!job->nonfinite) rmsprop_finish(job);
 *
 * All pointers belong to the caller, and must be good until then.
 */
#ifndef RMSPROP_STEP_H
#define RMSPROP_STEP_H

#include "kernels.h"

/* What a position keeps between steps, in the order of SLOTS in state.py. Each is made when an
 * option first needs it, and dropped by the first step after the option is off. */
enum {
    RMSPROP_ACCUMULATOR,      /* running mean of the squared gradients */
    RMSPROP_MOMENTUM,         /* of momentum and Nesterov's */
    RMSPROP_AVERAGE_GRADIENT, /* running mean of the gradients: centered */
    RMSPROP_MOVING_AVERAGE,   /* of the parameters: use_ema */
    RMSPROP_GRADIENT_SUM, /* of the calls since the latest update: gradient_accumulation_steps */
    RMSPROP_SLOTS
};

/* Elements that the norm copies at a time where they lie in Fortran's order. */
#define RMSPROP_PANEL 65536
/* Dimensions of an array: NPY_MAXDIMS of NumPy 2. */
#define RMSPROP_MOST_DIMENSIONS 64

/* The hyper-parameters that are numbers, those of the table in hyperparameters.py: optimizer.py
 * compares their names when it is imported. Flags are 0 or 1, None is NaN, and
 * nonfinite is 0 to propagate, 1 to raise and 2 to skip. */
#define RMSPROP_EACH_SETTING(DO)                                                                   \
    DO(lr)                                                                                         \
    DO(rho)                                                                                        \
    DO(epsilon)                                                                                    \
    DO(decay)                                                                                      \
    DO(clipnorm)                                                                                   \
    DO(clipvalue)                                                                                  \
    DO(parameter_clipnorm)                                                                         \
    DO(momentum)                                                                                   \
    DO(nesterov)                                                                                   \
    DO(centered)                                                                                   \
    DO(epsilon_in_sqrt)                                                                            \
    DO(initial_accumulator_value)                                                                  \
    DO(lr_in_momentum)                                                                             \
    DO(bias_correction)                                                                            \
    DO(maximize)                                                                                   \
    DO(weight_decay)                                                                               \
    DO(decoupled_weight_decay)                                                                     \
    DO(use_ema)                                                                                    \
    DO(ema_momentum)                                                                               \
    DO(ema_overwrite_frequency)                                                                    \
    DO(gradient_accumulation_steps)                                                                \
    DO(nonfinite)                                                                                  \
    DO(flush_subnormals)                                                                           \
    DO(zero_grad)
#define RMSPROP_SETTING_FIELD(name) double name;
#define RMSPROP_SETTING_NAME(name) #name " "
typedef struct {
    RMSPROP_EACH_SETTING(RMSPROP_SETTING_FIELD)
} rmsprop_settings;

typedef struct {
    char *param;                /* of this step: the user's buffer, or a staged copy */
    char *grad;                 /* where it has one; written by zero_grad only */
    int has_grad;               /* in this step */
    int active;                 /* has a gradient to follow in this step, its own or a sum */
    char *slots[RMSPROP_SLOTS]; /* NULL: not made yet */
    intptr_t size;              /* elements */
    const intptr_t *shape;      /* of the accumulator, hence of the position */
    int ndim;
    int itemsize; /* 4: float32, 8: float64 */
    int fortran;  /* the accumulator lies in Fortran's order */
    double lr_scale;
    int decays;         /* takes part in weight decay */
    int pending;        /* the sum of gradients holds some */
    double scale;       /* of the gradient, if clipped by its own norm */
    int nonfinite;      /* found so in this step */
    int64_t start;      /* bytes before it in the flat range of this step */
    int64_t stop;       /* and where it ends there */
    size_t first_block; /* block sums before it */
    char *copy_back_to; /* where a staged parameter goes back to; NULL: nowhere */
    const intptr_t *copy_back_strides;
    int copy_back_swapped;   /* it is of the other byte order */
    char *grad_copy_back_to; /* what zero_grad clears of a staged gradient; NULL: nothing */
    const intptr_t *grad_copy_back_strides;
} rmsprop_tensor;

typedef struct {
    const rmsprop_kernels *kernels; /* the two rows of an instruction set */
    rmsprop_tensor *tensors;
    intptr_t count;
    intptr_t active;        /* tensors with a gradient to follow */
    int64_t elements;       /* of all that are in the flat range */
    int64_t bytes;          /* of the flat range */
    int64_t iterations;     /* updates before this call */
    int64_t calls_in_cycle; /* since the latest update, with this one */
    int summing;            /* gradients are summed over calls */
    int updates;            /* this call updates */
    int dry;                /* nothing is written: gradients are looked at, as nonfinite wants it */
    int transposed;         /* a gradient may lie in Fortran's order */
    int each;               /* tensors differ in lr_scale or scale */
    int variant;            /* of the kernel */
    int passes;             /* around it */
    rmsprop_settings settings; /* as they were when the step began */
    rmsprop_scalars scalars;
    double *block_sums; /* `blocks` of them; NULL: no norm is asked for */
    char *panels;       /* of each share: RMSPROP_PANEL doubles */
    size_t blocks;
    int nonfinite; /* a gradient is, and settings ask */
    int shares;    /* at least 1 */
    int one_shot;  /* for more than one: in a team of their own, see team.h */
    int required;  /* bits of the slots that this step leaves: 1 << RMSPROP_ACCUMULATOR, ... */
} rmsprop_job;

/* How many calls make an update. */
static inline int64_t rmsprop_cycle(const rmsprop_settings *settings)
{
    /* None is NaN, which is not more than 1. */
    return settings->gradient_accumulation_steps > 1
               ? (int64_t)settings->gradient_accumulation_steps
               : 1;
}

/* Which slots the settings ask for, as bits: 1 << RMSPROP_ACCUMULATOR, ... */
static inline int rmsprop_required_slots(const rmsprop_settings *settings)
{
    return 1 << RMSPROP_ACCUMULATOR | (settings->momentum > 0) << RMSPROP_MOMENTUM |
           (settings->centered != 0) << RMSPROP_AVERAGE_GRADIENT |
           (settings->use_ema != 0) << RMSPROP_MOVING_AVERAGE |
           (settings->gradient_accumulation_steps > 1) << RMSPROP_GRADIENT_SUM;
}

/* Is a share that is kept at each step one that float32 does not round to 1? */
static inline int rmsprop_fits_below_1(double kept)
{
    return kept < 1 - 0x1p-25 || kept == 1;
}

/* Is there nothing in the settings that float32 could round to a value with which training ends?
 * Where this says no, check_float32 in hyperparameters.py knows, which takes 3 us; so what is usual
 * is asked first, and in the fewest comparisons. */
static inline int rmsprop_fit_float32(const rmsprop_settings *settings)
{
    const double least = 0x1p-149, most = 0x1p127;
    const double least_epsilon = settings->bias_correction != 0 ? 0x1p-124 : least;
    double kept = settings->rho;
    kept = settings->momentum > kept ? settings->momentum : kept;
    kept = settings->ema_momentum > kept ? settings->ema_momentum : kept;
    if (kept >= 1 - 0x1p-25 &&
        !(rmsprop_fits_below_1(settings->rho) && rmsprop_fits_below_1(settings->momentum) &&
          (settings->use_ema == 0 || rmsprop_fits_below_1(settings->ema_momentum)))) {
        return 0;
    }
    return settings->epsilon < most &&
           (settings->weight_decay < most || settings->decoupled_weight_decay != 0) &&
           (settings->epsilon >= least_epsilon || settings->epsilon == 0) &&
           !(settings->clipnorm < least && settings->clipnorm > 0) &&
           !(settings->clipvalue < least && settings->clipvalue > 0) &&
           !(settings->parameter_clipnorm < least && settings->parameter_clipnorm > 0);
}

/* What a call is to do, from the settings and the slots that they require: the updates made so far,
 * the calls since the latest one with this one, and whether tensors have an lr_scale. */
static inline void rmsprop_begin(rmsprop_job *restrict job,
                                 const rmsprop_settings *restrict settings, int required,
                                 int64_t iterations, int64_t calls, int scaled)
{
    const int64_t cycle = rmsprop_cycle(settings);
    job->settings = *settings;
    job->iterations = iterations;
    job->calls_in_cycle = calls;
    job->summing = cycle > 1 || calls > 1; /* in a cycle that ends early, too */
    job->updates = calls >= cycle;
    job->required = required | job->summing << RMSPROP_GRADIENT_SUM;
    job->variant = 6 * (settings->centered != 0) + (settings->epsilon_in_sqrt != 0) +
                   (settings->momentum == 0   ? 0
                    : settings->nesterov != 0 ? 4
                                              : 2);
    job->each = scaled || settings->parameter_clipnorm > 0;
    job->passes = (job->summing ? RMSPROP_ADD : 0) |
                  (settings->use_ema != 0 ? RMSPROP_AVERAGE : 0) |
                  (settings->zero_grad != 0 ? RMSPROP_ZERO_GRAD : 0);
    if (job->updates) {
        job->passes |= RMSPROP_UPDATE | (settings->flush_subnormals != 0 ? RMSPROP_FLUSH : 0);
        if (settings->weight_decay > 0) {
            job->passes |=
                settings->decoupled_weight_decay != 0 ? RMSPROP_DECAY : RMSPROP_DECAY_GRAD;
        }
    }
    if (settings->use_ema != 0 && settings->ema_overwrite_frequency >= 1 &&
        (iterations + 1) % (int64_t)settings->ema_overwrite_frequency == 0) {
        job->passes |= RMSPROP_OVERWRITE;
    }
    job->block_sums = NULL;
    job->nonfinite = 0;
}

/* Begins the flat range. */
static inline void rmsprop_begin_lining_up(rmsprop_job *job)
{
    job->active = 0;
    job->elements = job->bytes = 0;
    job->blocks = 0;
}

/* Appends a tensor of this step to the flat range; job->passes and job->updates are set. */
static inline void rmsprop_line_up(rmsprop_tensor *t, rmsprop_job *job)
{
    t->start = t->stop = job->bytes;
    t->first_block = job->blocks;
    t->nonfinite = 0;
    t->active = t->has_grad || (t->pending && job->updates);
    if (t->active) {
        job->blocks += rmsprop_block_count((size_t)t->size);
        job->active++;
    }
    if (t->active || (job->passes & RMSPROP_AVERAGE)) { /* averages follow every parameter */
        t->stop += t->size * t->itemsize;
        job->bytes = t->stop;
        job->elements += t->size;
    }
}

/* The arithmetic of a step, in the calling thread and, for more shares than one, in its team.
 * Where job->nonfinite is set afterwards no parameter and no state has changed. */
void rmsprop_perform(void *job);

/* After it: copies back what was staged, and notes which sums of gradients hold some. */
void rmsprop_finish(const rmsprop_job *job);

/* Clears the gradients of a step that is left out: else a NaN in a sum of them stays. */
void rmsprop_clear(const rmsprop_job *job);

/* The variant without options over n elements: for C and Cython code of others. */
void rmsprop_update_alone(const rmsprop_kernels *kernels, void *p, const void *g, void *a, size_t n,
                          const void *scalars);

#endif
