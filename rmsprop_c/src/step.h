/* One whole step of a model over raw buffers: tensors -> a flat range of bytes -> shares of it ->
 * kernels -> what was staged is copied back. It knows neither Python nor how many threads are good.
 *
 * A step is made in this order:
 *
 *     rmsprop_line_up_anew(job); for each tensor rmsprop_line_up(tensor, job);
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

/* The hyper-parameters that are numbers, in the order of the table in hyperparameters.py;
 * optimizer.py compares their names when it is imported. Flags are 0 or 1, None is NaN, and
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
    char *grad;                 /* NULL: none; written by zero_grad only */
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
    char *landing;      /* where a staged parameter goes back to; NULL: nowhere */
    const intptr_t *landing_strides;
    int landing_swapped; /* it is of the other byte order */
    char *grad_landing;  /* what zero_grad clears of a staged gradient; NULL: nothing */
    const intptr_t *grad_strides;
} rmsprop_tensor;

typedef struct {
    const rmsprop_kernels *kernels;
    rmsprop_tensor *tensors;
    intptr_t count;
    intptr_t active;    /* tensors with a gradient to follow */
    int64_t elements;   /* of all that are in the flat range */
    int64_t bytes;      /* of the flat range */
    int64_t iterations; /* updates before this call */
    int64_t calls;      /* since the latest update, with this one */
    int summing;        /* gradients are summed over calls */
    int updates;        /* this call updates */
    int dry;            /* nothing is written: gradients are looked at, as nonfinite wants it */
    int transposed;     /* a gradient may lie in Fortran's order */
    int each;           /* tensors differ in lr_scale, weight decay or scale */
    int variant;        /* of the kernel */
    int passes;         /* around it */
    rmsprop_settings settings; /* as they were when the step began */
    rmsprop_scalars scalars;
    double *block_sums; /* `blocks` of them; NULL: no norm is asked for */
    char *panels;       /* of each share: RMSPROP_PANEL doubles */
    size_t blocks;
    int nonfinite; /* a gradient is, and settings ask */
    int shares;    /* at least 1 */
    int one_shot;  /* for more than one: in a team of their own, see team.h */
    int needed;    /* bits of the slots that this step leaves: 1 << RMSPROP_ACCUMULATOR, ... */
} rmsprop_job;

/* Begins the flat range. */
static inline void rmsprop_line_up_anew(rmsprop_job *job)
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
    t->active = t->grad != NULL || (t->pending && job->updates);
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

#endif
