/* The C core without Python: whole steps of a model of five tensors, with every variant,
 * instruction set and pass, over shares in a team. The bits must be those of the portable kernels
 * in one thread. Built plainly, for valgrind and for ThreadSanitizer: without OpenMP the team is
 * made of POSIX threads, since to a sanitizer that does not know libgomp every one of its barriers
 * is a race.
 *
 *     driver          all of it
 *     driver bits     the bits of some of it, in portable kernels, for mutants
 *     driver race     a deliberate race, which a sanitizer must find
 */
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "src/fenv.h"
#include "src/step.h"
#include "src/team.h"
#include "src/threads.h"

#define TEAM 4
#define TENSORS 5
#define STEPS 4

#ifndef _OPENMP
struct member {
    void (*work)(const void *, int);
    const void *argument;
    int k;
};

static void *run_member(void *pointer)
{
    const struct member *member = pointer;
    const rmsprop_fenv found = rmsprop_fenv_enter();
    member->work(member->argument, member->k);
    rmsprop_fenv_leave(found);
    return NULL;
}

/* In place of the one in threads.c: see WRAPPED in driver.py. */
void __wrap_rmsprop_parallel_for(int shares, void (*work)(const void *, int), const void *argument);
void __wrap_rmsprop_parallel_for(int shares, void (*work)(const void *, int), const void *argument)
{
    pthread_t threads[TEAM];
    struct member members[TEAM];
    for (int k = 0; k < shares; k++) {
        members[k] = (struct member){work, argument, k};
        if (pthread_create(&threads[k], NULL, run_member, &members[k]) != 0) {
            abort();
        }
    }
    for (int k = 0; k < shares; k++) {
        pthread_join(threads[k], NULL);
    }
}
#endif

static uint64_t next(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

/* Values of both signs with exponents down to the subnormal numbers of float. */
static void fill(char *buffer, intptr_t n, int wide, int positive, uint64_t seed)
{
    for (intptr_t i = 0; i < n; i++) {
        const double fraction = 1.0 + (double)next(&seed) / 2147483648.0;
        const int exponent = (int)(next(&seed) % 150) - 140;
        const int negative = next(&seed) % 2 && !positive;
        const double x = ldexp(negative ? -fraction : fraction, exponent);
        if (wide) {
            ((double *)buffer)[i] = x;
        } else {
            ((float *)buffer)[i] = (float)x;
        }
    }
}

static uint64_t mix(uint64_t hash, const void *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        hash = (hash ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
    }
    return hash;
}

/* Fortran's order over more than one panel, and a user's array with gaps, in turn of the other byte
 * order, which is staged. */
static const intptr_t shapes[TENSORS][3] = {
    {211, 95, 1}, {37, 129, 1}, {41, 9, 211}, {1, 1, 1}, {3, 61, 83}};
static const int wide[TENSORS] = {0, 1, 1, 1, 1}, fortran[TENSORS] = {1, 0, 1, 0, 0};
enum { STAGED = 4 };
static const intptr_t gaps[3] = {61 * 83 * 16, 83 * 16, 16};

struct model {
    rmsprop_tensor *tensors; /* and their shapes: allocated, so that reading on is seen */
    char *grads[TENSORS], *copy_back_to, *grad_copy_back_to;
    void *allocated[TENSORS * (3 + RMSPROP_SLOTS) + 3];
    int count; /* of what is allocated */
    int size;  /* tensors */
};

/* Off any boundary, and ending where the allocation ends. */
static char *buffer(struct model *model, size_t size)
{
    char *start = malloc(size + 24);
    if (start == NULL) {
        abort();
    }
    model->allocated[model->count++] = start;
    return start + 24;
}

static void make(struct model *model, int count)
{
    memset(model, 0, sizeof *model);
    model->tensors = calloc((size_t)count, sizeof *model->tensors);
    model->allocated[model->count++] = model->tensors;
    for (int i = 0; i < count; i++) {
        rmsprop_tensor *t = &model->tensors[i];
        t->size = shapes[i][0] * shapes[i][1] * shapes[i][2];
        t->shape = memcpy(malloc(sizeof shapes[i]), shapes[i], sizeof shapes[i]);
        model->allocated[model->count++] = (void *)t->shape;
        t->ndim = 3;
        t->itemsize = wide[i] ? 8 : 4;
        t->fortran = fortran[i];
        t->lr_scale = 1.0 + 0.5 * i;
        t->decays = i != 1;
        t->param = buffer(model, (size_t)(t->size * t->itemsize));
        model->grads[i] = buffer(model, (size_t)(t->size * t->itemsize));
        fill(t->param, t->size, wide[i], 0, 11u + (uint64_t)i);
        for (int slot = 0; slot < RMSPROP_SLOTS; slot++) {
            t->slots[slot] = buffer(model, (size_t)(t->size * t->itemsize));
            fill(t->slots[slot], t->size, wide[i], slot == RMSPROP_ACCUMULATOR,
                 77u * (uint64_t)slot + (uint64_t)i);
        }
    }
    model->copy_back_to = buffer(model, (size_t)(shapes[STAGED][0] * gaps[0]));
    model->grad_copy_back_to = buffer(model, (size_t)(shapes[STAGED][0] * gaps[0]));
    memset(model->copy_back_to, 1, (size_t)(shapes[STAGED][0] * gaps[0]));
    memset(model->grad_copy_back_to, 1, (size_t)(shapes[STAGED][0] * gaps[0]));
}

/* What is on in a configuration beside its variant. */
struct options {
    int passes;  /* RMSPROP_UPDATE and RMSPROP_ADD apart */
    int summing; /* two calls for an update */
    int clip;    /* 1: clipnorm, 2: parameter_clipnorm */
    int each;
    int nonfinite; /* the gradient before this one has a NaN in the third call, and settings ask */
    int huge;      /* squares of gradients overflow unless they are clipped */
    int alone;     /* the model is its first tensor */
};

/* The settings of a variant and of what is on beside it. */
static rmsprop_settings settings_of(int variant, const struct options *options)
{
    const double off = variant % 2 ? 0.0 : NAN;
    return (rmsprop_settings){
        .lr = 0.01,
        .rho = 0.9,
        .epsilon = 1e-8,
        .decay = 0.1,
        .clipnorm = options->clip == 1 ? 1.0 : off,
        .clipvalue = options->huge || variant % 2 ? off : 0.5,
        .parameter_clipnorm = options->clip == 2 ? 1.0 : off,
        .momentum = variant % 6 >= 2 ? 0.9 : 0.0,
        .nesterov = variant % 6 >= 4,
        .centered = variant >= 6,
        .epsilon_in_sqrt = variant % 2,
        .lr_in_momentum = variant < 6,
        .bias_correction = variant % 2,
        .maximize = variant % 3 == 0,
        .weight_decay = options->passes & (RMSPROP_DECAY | RMSPROP_DECAY_GRAD) ? 0.01 : 0.0,
        .decoupled_weight_decay = options->passes & RMSPROP_DECAY,
        .use_ema = (options->passes & RMSPROP_AVERAGE) != 0,
        .ema_momentum = 0.99,
        .ema_overwrite_frequency = options->passes & RMSPROP_OVERWRITE ? 2 : NAN,
        .gradient_accumulation_steps = options->summing ? 2 : NAN,
        .nonfinite = options->nonfinite ? 2 : 0,
        .flush_subnormals = (options->passes & RMSPROP_FLUSH) != 0,
        .zero_grad = (options->passes & RMSPROP_ZERO_GRAD) != 0,
    };
}

static void line_up(struct model *model, rmsprop_job *job, int call)
{
    rmsprop_begin_lining_up(job);
    for (int i = 0; i < job->count; i++) {
        rmsprop_tensor *t = &model->tensors[i];
        t->has_grad = !(i == call && job->count > 1);
        t->grad = t->has_grad ? model->grads[i] : NULL; /* not to be read */
        t->copy_back_to = t->grad_copy_back_to = NULL;
        rmsprop_line_up(t, job);
        if (i == STAGED && (t->active || (job->passes & RMSPROP_OVERWRITE))) {
            t->copy_back_to = model->copy_back_to;
            t->copy_back_strides = gaps;
            t->copy_back_swapped = call % 2;
        }
        if (i == STAGED && t->has_grad && (job->passes & RMSPROP_ZERO_GRAD)) {
            t->grad_copy_back_to = model->grad_copy_back_to;
            t->grad_copy_back_strides = gaps;
        }
    }
}

static uint64_t hash_of(const struct model *model)
{
    uint64_t hash = 1469598103934665603u;
    for (int i = 0; i < model->size; i++) {
        const rmsprop_tensor *t = &model->tensors[i];
        const size_t size = (size_t)(t->size * t->itemsize);
        hash = mix(mix(hash, t->param, size), model->grads[i], size);
        hash = mix(hash, &t->pending, sizeof t->pending);
        for (int slot = 0; slot < RMSPROP_SLOTS; slot++) {
            hash = mix(hash, t->slots[slot], size);
        }
    }
    hash = mix(hash, model->copy_back_to, (size_t)(shapes[STAGED][0] * gaps[0]));
    return mix(hash, model->grad_copy_back_to, (size_t)(shapes[STAGED][0] * gaps[0]));
}

/* Some steps of a configuration; a hash of all bits that they leave. */
static uint64_t steps(const rmsprop_kernels *kernels, int variant, const struct options *options,
                      int shares)
{
    struct model model;
    const rmsprop_settings settings = settings_of(variant, options);
    rmsprop_trials trials = {0};
    rmsprop_job job = {.kernels = kernels, .shares = shares};
    uint64_t hash = 0;
    make(&model, options->alone ? 1 : TENSORS);
    model.size = options->alone ? 1 : TENSORS;
    job.tensors = model.tensors;
    job.count = options->alone ? 1 : TENSORS;
    job.transposed = 1;
    rmsprop_team_begin(&trials);
    for (int call = 0; call < STEPS; call++) {
        const int bad = call == 2 ? options->nonfinite : 0;
        for (int i = 0; i < model.size; i++) {
            fill(model.grads[i], model.tensors[i].size, wide[i], 0, (uint64_t)(call * 7 + i));
        }
        if (bad) { /* a NaN */
            const intptr_t size = model.tensors[bad - 1].size;
            const int itemsize = model.tensors[bad - 1].itemsize;
            memset(model.grads[bad - 1] + (size - 1) * itemsize, 0xff, (size_t)itemsize);
        }
        if (options->huge) {
            ((float *)model.grads[0])[7] = 1e30f;
        }
        rmsprop_begin(&job, &settings, rmsprop_required_slots(&settings),
                      options->summing ? call / 2 : call, options->summing ? call % 2 + 1 : 1,
                      options->each);
        line_up(&model, &job, call);
        job.panels = NULL;
        if (job.updates && options->clip) {
            job.block_sums = malloc(job.blocks * sizeof(double));
            job.panels = malloc((size_t)shares * RMSPROP_PANEL * sizeof(double));
        }
        rmsprop_team_perform(&trials, &job);
        for (int i = 0; i < model.size; i++) {
            if (model.tensors[i].nonfinite != (i == bad - 1) || job.nonfinite != (bad > 0)) {
                fprintf(stderr, "a NaN was %s\n", bad ? "missed" : "invented");
                exit(1);
            }
        }
        if (job.nonfinite) {
            rmsprop_clear(&job);
        } else {
            rmsprop_finish(&job);
        }
        free(job.block_sums);
        free(job.panels);
        hash = mix(hash, &(uint64_t){hash_of(&model)}, sizeof hash);
        hash = mix(hash, &job.required, sizeof job.required);
    }
    while (model.count > 0) {
        free(model.allocated[--model.count]);
    }
    return hash;
}

static int kernels(int few)
{
    static const struct options all[] = {
        {0, 0, 0, 0, 0, 0, 0},
        {0, 0, 1, 0, 2, 0, 0},
        {0, 0, 0, 0, 4, 0, 0}, /* in an array of one element */
        {0, 0, 2, 0, 1, 1, 0},
        {RMSPROP_DECAY | RMSPROP_FLUSH, 0, 2, 1, 0, 0, 0},
        {RMSPROP_DECAY_GRAD | RMSPROP_AVERAGE | RMSPROP_OVERWRITE, 0, 0, 1, 1, 0, 0},
        {RMSPROP_DECAY_GRAD | RMSPROP_FLUSH | RMSPROP_ZERO_GRAD, 1, 1, 0, 0, 0, 0},
        {RMSPROP_AVERAGE | RMSPROP_ZERO_GRAD, 1, 2, 1, 2, 0, 0},
        {RMSPROP_AVERAGE, 1, 0, 0, 0, 0, 0},
        {0, 0, 0, 0, 0, 1, 0},
        {0, 1, 0, 0, 0, 1, 0},
        {RMSPROP_AVERAGE | RMSPROP_OVERWRITE, 0, 1, 1, 0, 0, 1},
        {0, 1, 2, 0, 1, 0, 1},
    };
    int done = 0, wrong = 0;
    uint64_t bits = 0;
    for (int variant = 0; variant < RMSPROP_VARIANTS; variant += few ? 11 : 1) {
        for (size_t j = 0; j < sizeof all / sizeof *all; j++) {
            uint64_t expected = 0;
            const rmsprop_kernels *table;
            for (int i = 0; (table = rmsprop_kernels_compiled(i)) != NULL && !(few && i); i++) {
                for (int shares = 1; shares <= TEAM; shares += TEAM - 1) {
                    if (!rmsprop_kernels_supported(table)) {
                        continue;
                    }
                    const uint64_t found = steps(table, variant, &all[j], shares);
                    expected = done++ && expected ? expected : found;
                    if (found != expected) {
                        fprintf(stderr, "%s variant %d options %zu shares %d\n", table->isa,
                                variant, j, shares);
                        wrong++;
                    }
                }
            }
            bits = mix(bits, &expected, sizeof expected);
        }
    }
    printf("%d configurations, %d with other bits; all of them: %016llx\n", done, wrong,
           (unsigned long long)bits);
    fflush(stdout); /* or every child of a fork says it again */
    return wrong;
}

static int inside[TEAM]; /* each written by one thread, read by the child of a fork */

static void *enter_and_leave(void *argument)
{
    int *mine = argument;
    for (int i = 0; i < 2000; i++) {
        rmsprop_fork_gate_enter();
        __atomic_store_n(mine, 1, __ATOMIC_RELAXED);
        __atomic_store_n(mine, 0, __ATOMIC_RELAXED);
        rmsprop_fork_gate_leave();
    }
    return NULL;
}

/* Forks amid threads that go in and out of steps: no child may see one inside. */
static int forks(void)
{
    pthread_t threads[TEAM];
    int wrong = 0;
    for (int k = 0; k < TEAM; k++) {
        pthread_create(&threads[k], NULL, enter_and_leave, &inside[k]);
    }
    for (int i = 0; i < 20; i++) {
        int status = 0;
        const pid_t child = fork();
        if (child == 0) {
            int seen = rmsprop_threads_forked() != 1 || rmsprop_threads_forks() != 1 ||
                       rmsprop_threads_survivor() != rmsprop_threads_self();
            for (int k = 0; k < TEAM; k++) {
                seen |= __atomic_load_n(&inside[k], __ATOMIC_RELAXED);
            }
            rmsprop_fork_gate_enter(); /* open again */
            rmsprop_fork_gate_leave();
            _exit(seen);
        }
        waitpid(child, &status, 0);
        wrong += status != 0;
    }
    for (int k = 0; k < TEAM; k++) {
        pthread_join(threads[k], NULL);
    }
    printf("20 forks, %d children with half a step\n", wrong);
    return wrong;
}

static void count(void *argument)
{
    ++*(int *)argument;
}

static int threads(void)
{
    int calls = 0;
    setenv("OMP_STACKSIZE", "1 M", 1);
    const int available = rmsprop_threads_available(TEAM);
    setenv("OMP_STACKSIZE", "1B", 1);
    const int impossible = rmsprop_threads_available(TEAM);
    const int run = rmsprop_threads_run(count, &calls);
    const double before = rmsprop_threads_clock();
    return !available + impossible + !run + (calls != 1) + (rmsprop_threads_clock() < before);
}

/* What team.c asks of threads.c and step.c, played, to see what it decides: --wrap sends its calls
 * here. */
static struct {
    int on, openmp, limit, forked;
    int most;  /* threads that can live at once */
    int asked; /* how often that was asked */
    int in_team;
    double now, pace[2]; /* seconds per element alone, and in a team */
    char made[1 << 18];  /* what was done: alone or in a team */
    int count;
} played;

int __real_rmsprop_threads_openmp(void);
int __wrap_rmsprop_threads_openmp(void);
int __wrap_rmsprop_threads_openmp(void)
{
    return played.on ? played.openmp : __real_rmsprop_threads_openmp();
}

int __real_rmsprop_threads_limit(void);
int __wrap_rmsprop_threads_limit(void);
int __wrap_rmsprop_threads_limit(void)
{
    return played.on ? played.limit : __real_rmsprop_threads_limit();
}

int __real_rmsprop_threads_forked(void);
int __wrap_rmsprop_threads_forked(void);
int __wrap_rmsprop_threads_forked(void)
{
    return played.on ? played.forked : __real_rmsprop_threads_forked();
}

int __real_rmsprop_threads_available(int count);
int __wrap_rmsprop_threads_available(int count);
int __wrap_rmsprop_threads_available(int count)
{
    played.asked++;
    return played.on ? count <= played.most : __real_rmsprop_threads_available(count);
}

double __real_rmsprop_threads_clock(void);
double __wrap_rmsprop_threads_clock(void);
double __wrap_rmsprop_threads_clock(void)
{
    return played.on ? played.now : __real_rmsprop_threads_clock();
}

int __real_rmsprop_threads_run(void (*function)(void *), void *argument);
int __wrap_rmsprop_threads_run(void (*function)(void *), void *argument);
int __wrap_rmsprop_threads_run(void (*function)(void *), void *argument)
{
    if (!played.on) {
        return __real_rmsprop_threads_run(function, argument);
    }
    if (played.most < 2) {
        return 0;
    }
    played.in_team = 1;
    function(argument);
    played.in_team = 0;
    return 1;
}

void __real_rmsprop_perform(void *job);
void __wrap_rmsprop_perform(void *job);
void __wrap_rmsprop_perform(void *job)
{
    const int team = played.in_team;
    if (!played.on) {
        __real_rmsprop_perform(job);
        return;
    }
    played.made[played.count++] = "at"[team];
    if (((rmsprop_job *)job)->shares != 1 + team) {
        played.made[played.count - 1] = '?';
    }
    played.now += played.pace[team] * (double)((rmsprop_job *)job)->elements;
}

/* How many threads a step gets. */
static int sizes(void)
{
    static const struct {
        int requested, processors, openmp, limit, forked, most;
        int64_t elements;
        int expected, one_shot, asked;
    } cases[] = {
        {0, 8, 1, 8, 0, 8, (1 << 22) - 1, 1, 1, 0}, {0, 8, 1, 8, 0, 8, 1 << 22, 2, 1, 1},
        {0, 8, 1, 8, 0, 8, 5 << 21, 5, 1, 1},       {0, 8, 1, 8, 0, 8, (6 << 21) - 1, 5, 1, 0},
        {0, 8, 1, 3, 0, 8, 100 << 21, 3, 1, 0},     {0, 2, 1, 8, 0, 8, 100 << 21, 2, 1, 0},
        {0, 8, 1, 8, 0, 8, 100 << 21, 8, 1, 1},     {0, 8, 0, 8, 0, 8, 100 << 21, 1, 1, 0},
        {0, 1, 1, 8, 0, 8, 100 << 21, 1, 1, 0},     {4, 8, 1, 8, 0, 8, (1 << 15) - 1, 1, 0, 0},
        {4, 1, 1, 1, 0, 8, 1 << 15, 4, 0, 0},       {4, 8, 1, 8, 1, 8, (1 << 22) - 1, 1, 1, 0},
        {4, 8, 1, 8, 1, 8, 1 << 22, 4, 1, 0},       {1, 8, 1, 8, 0, 8, 1 << 22, 1, 0, 0},
        {1025, 8, 1, 8, 0, 2000, 1 << 22, 1, 0, 0},
    };
    int wrong = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int one_shot = -1;
        played.openmp = cases[i].openmp;
        played.limit = cases[i].limit;
        played.forked = cases[i].forked;
        played.most = cases[i].most;
        played.asked = 0;
        rmsprop_team_policy.requested = cases[i].requested;
        rmsprop_team_policy.processors = cases[i].processors;
        const int found = rmsprop_team_size(cases[i].elements, &one_shot);
        if (found != cases[i].expected || one_shot != cases[i].one_shot ||
            played.asked != cases[i].asked) {
            fprintf(stderr, "case %zu: %d threads, one-shot %d, asked %d\n", i, found, one_shot,
                    played.asked);
            wrong++;
        }
    }
    return wrong;
}

/* What was refused once is not asked again, and smaller teams are. */
static int refusals(void)
{
    static const int asked[][3] = {/* threads, expected, asked */
                                   {30, 1, 1}, {40, 1, 0},  {25, 1, 1},
                                   {26, 1, 0}, {20, 20, 1}, {19, 19, 0}};
    int one_shot, wrong = 0;
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        rmsprop_team_policy.requested = asked[i][0];
        played.most = 20;
        played.asked = 0;
        wrong += rmsprop_team_size(1 << 22, &one_shot) != asked[i][1];
        wrong += played.asked != asked[i][2];
    }
    return wrong;
}

/* Which of `steps` long steps are made in a team, where a step alone and in one take so long; from
 * step `change` on the latter takes another time. The places of those that differ from the step
 * before are compared. */
static int trials_of(double alone, double team, int change, double then, int most, int steps,
                     const int *expected)
{
    rmsprop_trials trials = {0};
    int wrong = 0;
    rmsprop_team_begin(&trials);
    played.now = 0; /* so that what follows is exact */
    played.count = 0;
    played.most = most;
    played.pace[0] = alone;
    for (int i = 0; i < steps; i++) {
        rmsprop_job job = {.shares = 2, .one_shot = 1, .elements = 1 << (22 + i % 2)};
        played.pace[1] = change > 0 && i >= change ? then : team;
        rmsprop_team_perform(&trials, &job);
    }
    for (int i = 1; i < played.count; i++) {
        if (played.made[i] != played.made[i - 1] && *expected++ != i) {
            fprintf(stderr, "a change at step %d\n", i);
            wrong++;
        }
    }
    return wrong + (*expected != 0) + (played.count != steps) + (played.made[0] != 'a');
}

static int choices(void)
{
    /* The first four alternate; a trial that loses comes again after twice as many steps. */
    static const int faster[] = {1, 2, 3, 36, 37, 100, 101, 228, 229, 0};
    static const int slower[] = {1, 2, 3, 4, 36, 37, 100, 101, 228, 229, 0};
    /* By less than 5 % is not enough, but a trial that wins comes again soon. */
    static const int little[] = {1, 2, 3, 4, 36, 37, 68, 69, 100, 101, 0};
    /* A team that has become slow is left after two steps, and tried after a while. */
    static const int changed[] = {1, 2, 3, 36, 37, 42, 100, 101, 0};
    static const int never[] = {0};
    int wrong = trials_of(1, 0.5, 0, 0, 2, 240, faster) + trials_of(0.5, 1, 0, 0, 2, 240, slower);
    wrong += trials_of(1, 0.96, 0, 0, 2, 110, little) + trials_of(20, 19, 0, 0, 2, 110, little);
    wrong += trials_of(1, 1, 0, 0, 2, 240, slower);
    wrong += trials_of(1, 0.5, 40, 2, 2, 110, changed) + trials_of(1, 0.5, 0, 0, 1, 240, never);
    /* The gap ends at 65,536. */
    rmsprop_trials trials = {.steps = 10, .next_trial = 10, .gap = 1 << 15, .pace = {1, 2}};
    for (int i = 0; i < 2; i++) {
        rmsprop_job job = {.shares = 2, .one_shot = 1, .elements = 1};
        trials.steps = trials.next_trial;
        played.count = 0;
        played.most = 2;
        played.pace[0] = 1;
        played.pace[1] = 2;
        rmsprop_team_perform(&trials, &job);
        wrong += trials.gap != 1 << 16 || played.made[0] != 't';
    }
    /* One thread, or a persistent team, is no choice. */
    for (int one_shot = 0; one_shot < 2; one_shot++) {
        rmsprop_job job = {.shares = 1, .one_shot = one_shot, .elements = 1};
        played.count = 0;
        rmsprop_team_perform(&trials, &job);
        wrong += played.count != 1 || played.made[0] != 'a';
    }
    return wrong;
}

/* What team.c decides. */
static int team(void)
{
    const rmsprop_policy before = rmsprop_team_policy;
    played.on = 1;
    const int wrong =
        (before.requested != 0) + (before.processors != 1) + sizes() + refusals() + choices();
    played.on = 0;
    rmsprop_team_policy = before;
    printf("%d wrong decisions about teams\n", wrong);
    return wrong;
}

/* The step for code of others: two elements, and one behind them that stays. */
static int alone(void)
{
    float p[3] = {1, 2, 3}, a[3] = {0, 0.5f, 3};
    const float g[3] = {1, 6, 7}, kept = 0.9f, new = 1 - kept, rate = 0.5f, epsilon = 1e-8f;
    const rmsprop_scalars scalars = {
        .learning_rate = 0.5, .rho = 0.9, .epsilon = 1e-8, .scale = 1, .clipvalue = INFINITY};
    int wrong = 0;
    rmsprop_update_alone(rmsprop_kernels_compiled(0), p, g, a, 2, &scalars);
    for (int i = 0; i < 2; i++) {
        const float square = g[i] * g[i], before = i == 0 ? 0 : 0.5f;
        const float old = kept * before, mean = old + new * square;
        const float step = rate * g[i], root = sqrtf(mean);
        wrong += a[i] != mean || p[i] != (float)(i + 1) - step / (root + epsilon);
    }
    wrong += p[2] != 3 || a[2] != 3;
    printf("%d wrong elements of a step for others\n", wrong);
    return wrong;
}

/* What float32 holds of settings, and what it may not. */
static int fits(void)
{
    static const struct {
        size_t place;
        double fits, does_not;
    } cases[] = {
        {offsetof(rmsprop_settings, rho), 1 - 0x1p-24, 1 - 0x1p-25},
        {offsetof(rmsprop_settings, rho), 1, 1 - 0x1p-53},
        {offsetof(rmsprop_settings, momentum), 1 - 0x1p-24, 1 - 0x1p-25},
        {offsetof(rmsprop_settings, momentum), 1, 1 - 0x1p-53},
        {offsetof(rmsprop_settings, ema_momentum), 1 - 0x1p-24, 1 - 0x1p-25},
        {offsetof(rmsprop_settings, ema_momentum), 1, 1 - 0x1p-53},
        {offsetof(rmsprop_settings, epsilon), 0x1p-149, 0x1p-150},
        {offsetof(rmsprop_settings, epsilon), 0, 0x1p-1000},
        {offsetof(rmsprop_settings, epsilon), 0x1p126, 0x1p127},
        {offsetof(rmsprop_settings, weight_decay), 0x1p126, 0x1p127},
        {offsetof(rmsprop_settings, clipnorm), 0x1p-149, 0x1p-150},
        {offsetof(rmsprop_settings, clipnorm), 0, 0x1p-1000},
        {offsetof(rmsprop_settings, clipvalue), 0x1p-149, 0x1p-150},
        {offsetof(rmsprop_settings, clipvalue), NAN, 0x1p-1000},
        {offsetof(rmsprop_settings, parameter_clipnorm), 0x1p-149, 0x1p-150},
        {offsetof(rmsprop_settings, parameter_clipnorm), -1, 0x1p-1000},
    };
    int wrong = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rmsprop_settings settings = {.rho = 0.9, .epsilon = 1e-8, .clipnorm = NAN, .use_ema = 1};
        double *value = (double *)(void *)((char *)&settings + cases[i].place);
        *value = cases[i].fits;
        wrong += !rmsprop_fit_float32(&settings);
        *value = cases[i].does_not;
        wrong += rmsprop_fit_float32(&settings);
    }
    rmsprop_settings corrected = {.rho = 0.9, .epsilon = 0x1p-124, .bias_correction = 1};
    wrong += !rmsprop_fit_float32(&corrected);
    corrected.epsilon = 0x1p-125;
    wrong += rmsprop_fit_float32(&corrected);
    corrected.bias_correction = 0;
    wrong += !rmsprop_fit_float32(&corrected);
    /* What plays no part does no harm. */
    const rmsprop_settings unused = {.rho = 1,
                                     .ema_momentum = 1 - 0x1p-30,
                                     .weight_decay = 0x1p1000,
                                     .decoupled_weight_decay = 1};
    wrong += !rmsprop_fit_float32(&unused);
    printf("%d wrong answers about float32\n", wrong);
    return wrong;
}

static int shared;

static void *race(void *argument)
{
    shared += *(int *)argument;
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "race") == 0) {
        pthread_t thread;
        int one = 1;
        pthread_create(&thread, NULL, race, &one);
        race(&one);
        pthread_join(thread, NULL);
        return 0;
    }
    if (argc > 1 && strcmp(argv[1], "bits") == 0) {
        return team() + fits() + alone() + kernels(1) != 0;
    }
    rmsprop_threads_init();
    return threads() + team() + fits() + alone() + kernels(0) + forks() != 0;
}
