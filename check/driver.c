/* The C core without Python: every variant, type, instruction set and pass, over shares in a team.
 * The bits must be those of the portable kernels in one thread. Built plainly, for valgrind and for
 * ThreadSanitizer: without OpenMP the team is made of POSIX threads, since to a sanitizer that does
 * not know libgomp every one of its barriers is a race.
 *
 *     driver          all of it
 *     driver race     a deliberate race, which a sanitizer must find
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "src/fenv.h"
#include "src/kernels.h"
#include "src/threads.h"

#define TEAM 4
#define BUFFERS 7 /* p, g, a, m, mean, ema, sum */

struct job {
    const rmsprop_kernels *kernels;
    rmsprop_scalars scalars;
    int wide, variant, passes, shares;
    size_t n;
    char *buffers[BUFFERS];
    double *sums;
    int nonfinite;
};

/* Where share k begins: a whole number of cache lines. */
static size_t cut(const struct job *job, size_t total, size_t grain, int k)
{
    return k == job->shares ? total : total * (size_t)k / (size_t)job->shares / grain * grain;
}

static void update_share(const void *argument, int k)
{
    const struct job *job = argument;
    const size_t begin = cut(job, job->n, 16, k), n = cut(job, job->n, 16, k + 1) - begin;
    if (n == 0) {
        return;
    }
    if (job->wide) {
        double *b[BUFFERS];
        for (int i = 0; i < BUFFERS; i++) {
            b[i] = job->buffers[i] ? (double *)job->buffers[i] + begin : NULL;
        }
        rmsprop_kernel_f64 *update = job->kernels->update_f64[job->variant];
        if (job->passes == 0) {
            update(b[0], b[1], b[2], b[3], b[4], n, &job->scalars);
        } else {
            job->kernels->blocks_f64(update, job->passes, b[0], b[1], b[2], b[3], b[4], b[5], b[6],
                                     n, &job->scalars);
        }
    } else {
        float *b[BUFFERS];
        for (int i = 0; i < BUFFERS; i++) {
            b[i] = job->buffers[i] ? (float *)job->buffers[i] + begin : NULL;
        }
        rmsprop_kernel_f32 *update = job->kernels->update_f32[job->variant];
        if (job->passes == 0) {
            update(b[0], b[1], b[2], b[3], b[4], n, &job->scalars);
        } else {
            job->kernels->blocks_f32(update, job->passes, b[0], b[1], b[2], b[3], b[4], b[5], b[6],
                                     n, &job->scalars);
        }
    }
}

static void sum_share(const void *argument, int k)
{
    struct job *job = (struct job *)argument;
    const size_t begin = cut(job, job->n, RMSPROP_BLOCK, k);
    const size_t n = cut(job, job->n, RMSPROP_BLOCK, k + 1) - begin;
    double *sums = job->sums + begin / RMSPROP_BLOCK;
    int finite;
    if (job->wide) {
        const double *g = (const double *)job->buffers[1] + begin;
        job->kernels->block_sums_f64(g, n, sums);
        finite = job->kernels->finite_f64(g, n, &job->scalars);
    } else {
        const float *g = (const float *)job->buffers[1] + begin;
        job->kernels->block_sums_f32(g, n, sums);
        finite = job->kernels->finite_f32(g, n, &job->scalars);
    }
    if (!finite) {
        rmsprop_threads_flag(&job->nonfinite);
    }
}

struct member {
    void (*work)(const void *, int);
    const void *argument;
    int k;
};

#ifndef _OPENMP
static void *run_member(void *pointer)
{
    const struct member *member = pointer;
    const rmsprop_fenv found = rmsprop_fenv_enter();
    member->work(member->argument, member->k);
    rmsprop_fenv_leave(found);
    return NULL;
}
#endif

static void share_out(struct job *job, void (*work)(const void *, int))
{
#ifdef _OPENMP
    rmsprop_threads_share(job->shares, work, job);
#else
    pthread_t threads[TEAM];
    struct member members[TEAM];
    if (job->shares == 1) {
        rmsprop_threads_share(1, work, job);
        return;
    }
    for (int k = 0; k < job->shares; k++) {
        members[k] = (struct member){work, job, k};
        if (pthread_create(&threads[k], NULL, run_member, &members[k]) != 0) {
            abort();
        }
    }
    for (int k = 0; k < job->shares; k++) {
        pthread_join(threads[k], NULL);
    }
#endif
}

static uint64_t next(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

/* Values of both signs with exponents down to the subnormal numbers of float. */
static void fill(char *buffer, size_t n, int wide, int positive, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) {
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

/* Three steps of a configuration; a hash of all bits that they leave. */
static uint64_t steps(struct job *job, int nonfinite)
{
    const size_t size = job->wide ? sizeof(double) : sizeof(float);
    const size_t blocks = rmsprop_block_count(job->n);
    const int needed[BUFFERS] = {1,
                                 1,
                                 1,
                                 job->variant % 6 >= 2,
                                 job->variant >= 6,
                                 (job->passes & RMSPROP_AVERAGE) != 0,
                                 (job->passes & RMSPROP_ADD) != 0};
    char *allocated[BUFFERS] = {NULL};
    uint64_t hash = 1469598103934665603u;
    for (int i = 0; i < BUFFERS; i++) {
        if (needed[i]) { /* off any boundary, and ending where the allocation ends */
            allocated[i] = malloc((job->n + 3) * size);
            job->buffers[i] = allocated[i] + 3 * size;
            fill(job->buffers[i], job->n, job->wide, i == 2, 77u * (uint64_t)i + job->n);
        } else {
            job->buffers[i] = NULL;
        }
    }
    job->sums = malloc(blocks * sizeof(double));
    for (int t = 0; t < 3; t++) {
        const double bias = job->kernels->power(0.9, t + 1);
        job->scalars = (rmsprop_scalars){.rho = 0.9,
                                         .epsilon = 1e-8,
                                         .scale = 1.0,
                                         .clipvalue = 0.5,
                                         .bias = job->variant % 2 ? bias : 0.0,
                                         .momentum = 0.9,
                                         .lr_outside = job->variant >= 6,
                                         .weight_decay = 0.01,
                                         .ema_momentum = 0.99};
        job->scalars.learning_rate = job->kernels->learning_rate(0.01, 0.1, t);
        job->nonfinite = 0;
        if (nonfinite) {
            memset(job->buffers[1] + (job->n / 2) * size, 0xff, size); /* a NaN */
        }
        share_out(job, sum_share);
        if (job->nonfinite != nonfinite) {
            fprintf(stderr, "a NaN was %s\n", nonfinite ? "missed" : "invented");
            exit(1);
        }
        hash = mix(hash, job->sums, nonfinite ? 0 : blocks * sizeof(double));
        job->scalars.scale = job->kernels->gradient_scale(job->sums, blocks, 1.0, 2, t % 2);
        if (!nonfinite) {
            share_out(job, update_share);
        }
        for (int i = 0; i < BUFFERS; i++) {
            hash = needed[i] && !nonfinite ? mix(hash, job->buffers[i], job->n * size) : hash;
        }
        fill(job->buffers[1], job->n, job->wide, 0, (uint64_t)t);
    }
    for (int i = 0; i < BUFFERS; i++) {
        free(allocated[i]);
    }
    free(job->sums);
    return hash;
}

static int kernels(void)
{
    static const int passes[] = {
        0,
        RMSPROP_UPDATE | RMSPROP_DECAY | RMSPROP_FLUSH,
        RMSPROP_UPDATE | RMSPROP_DECAY_GRAD | RMSPROP_AVERAGE | RMSPROP_OVERWRITE,
        RMSPROP_ADD | RMSPROP_UPDATE | RMSPROP_DECAY_GRAD | RMSPROP_FLUSH | RMSPROP_ZERO_GRAD,
        RMSPROP_ADD | RMSPROP_AVERAGE | RMSPROP_ZERO_GRAD,
    };
    static const size_t sizes[] = {1, 129, 20011};
    int done = 0, wrong = 0;
    for (int wide = 0; wide < 2; wide++) {
        for (int variant = 0; variant < RMSPROP_VARIANTS; variant++) {
            for (size_t j = 0; j < sizeof passes / sizeof *passes; j++) {
                for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
                    for (int nonfinite = 0; nonfinite < (j ? 1 : 2); nonfinite++) {
                        uint64_t expected = 0;
                        const rmsprop_kernels *table;
                        for (int i = 0; (table = rmsprop_kernels_compiled(i)) != NULL; i++) {
                            for (int shares = 1; shares <= TEAM; shares += TEAM - 1) {
                                struct job job = {.kernels = table,
                                                  .wide = wide,
                                                  .variant = variant,
                                                  .passes = passes[j],
                                                  .shares = shares,
                                                  .n = sizes[s]};
                                if (!rmsprop_kernels_supported(table)) {
                                    continue;
                                }
                                const uint64_t found = steps(&job, nonfinite);
                                expected = done++ && expected ? expected : found;
                                if (found != expected) {
                                    fprintf(stderr, "%s f%d variant %d passes %d n %zu shares %d\n",
                                            table->name, wide ? 64 : 32, variant, passes[j],
                                            sizes[s], shares);
                                    wrong++;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    printf("%d configurations, %d with other bits\n", done, wrong);
    fflush(stdout); /* or every child of a fork says it again */
    return wrong;
}

static int inside[TEAM]; /* each written by one thread, read by the child of a fork */

static void *enter_and_leave(void *argument)
{
    int *mine = argument;
    for (int i = 0; i < 2000; i++) {
        rmsprop_threads_enter();
        __atomic_store_n(mine, 1, __ATOMIC_RELAXED);
        __atomic_store_n(mine, 0, __ATOMIC_RELAXED);
        rmsprop_threads_leave();
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
            rmsprop_threads_enter(); /* open again */
            rmsprop_threads_leave();
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
    rmsprop_threads_init();
    return threads() + kernels() + forks() != 0;
}
