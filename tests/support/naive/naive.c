/* RMSprop over raw pointers with OpenMP, as people write it. It has the right bits where nothing
 * goes wrong; test_hazards.py makes things go wrong. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <omp.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef __SSE2__
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <fenv.h>
#endif

void naive_step(float *p, const float *g, float *a, float *m, long n, float lr, float rho,
                float epsilon, float momentum, float scale, int threads)
{
#pragma omp parallel num_threads(threads)
    {
        const long k = omp_get_thread_num();
        for (long i = n * k / threads; i < n * (k + 1) / threads; i++) {
            const float gradient = g[i] * scale;
            a[i] = rho * a[i] + (1 - rho) * (gradient * gradient);
            const float d = (lr * gradient) / (sqrtf(a[i]) + epsilon);
            m[i] = momentum * m[i] + d;
            p[i] -= m[i];
        }
    }
}

float naive_sum_of_squares(const float *g, long n, int threads)
{
    float sum = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : sum)
    for (long i = 0; i < n; i++) {
        sum += g[i] * g[i];
    }
    return sum;
}

/* What a library leaves behind that was linked with -ffast-math, or that rounds its own way. The
 * value is that of x86's control register; aarch64 has the same bits elsewhere, in 32 bits of FPCR,
 * and other machines round up for any but 0. */
void set_environment(unsigned int value)
{
#if defined(__SSE2__)
    _mm_setcsr(value);
#elif defined(__aarch64__)
    const unsigned long flush = (value & 0x8000ul) << 9;
    const unsigned long up = (value & 0x4000ul) << 8, down = (value & 0x2000ul) << 10;
    __asm__ volatile("msr fpcr, %0" : : "r"(flush | up | down));
#else
    fesetround(value ? FE_UPWARD : FE_TONEAREST);
#endif
}

unsigned int get_environment(void)
{
#if defined(__SSE2__)
    return _mm_getcsr() & ~0x3fu; /* without the sticky flags */
#elif defined(__aarch64__)
    unsigned long found;
    __asm__ volatile("mrs %0, fpcr" : "=r"(found));
    return (unsigned int)found;
#else
    return fegetround() == FE_UPWARD;
#endif
}

/* A library's fork, which does not wait for the GIL: how many seconds it took. */
double seconds_to_fork(void)
{
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    const pid_t child = fork();
    if (child == 0) {
        _exit(0);
    }
    clock_gettime(CLOCK_MONOTONIC, &after);
    waitpid(child, 0, 0);
    return (double)(after.tv_sec - before.tv_sec) + 1e-9 * (double)(after.tv_nsec - before.tv_nsec);
}
