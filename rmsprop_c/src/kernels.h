/* The kernels as the package calls them: one table per instruction set, chosen at run time. */
#ifndef RMSPROP_KERNELS_H
#define RMSPROP_KERNELS_H

#include "../include/rmsprop.h"

typedef struct {
    const char *name;
    rmsprop_kernel_f32 *update_f32[RMSPROP_VARIANTS];
    rmsprop_kernel_f64 *update_f64[RMSPROP_VARIANTS];
    void (*blocks_f32)(rmsprop_kernel_f32 *update, int passes, float *p, float *g, float *a,
                       float *m, float *mean, float *ema, float *sum, size_t n,
                       const rmsprop_scalars *scalars);
    void (*blocks_f64)(rmsprop_kernel_f64 *update, int passes, double *p, double *g, double *a,
                       double *m, double *mean, double *ema, double *sum, size_t n,
                       const rmsprop_scalars *scalars);
    void (*block_sums_f32)(const float *g, size_t n, double *sums);
    void (*block_sums_f64)(const double *g, size_t n, double *sums);
    int (*finite_f32)(const float *g, size_t n, const rmsprop_scalars *scalars);
    int (*finite_f64)(const double *g, size_t n, const rmsprop_scalars *scalars);
} rmsprop_kernels;

/* The i-th table that was compiled, widest last; NULL behind the last. */
const rmsprop_kernels *rmsprop_kernels_compiled(int i);

/* Can this processor, under this operating system, run it? */
int rmsprop_kernels_supported(const rmsprop_kernels *kernels);

/* The fastest supported one. */
const rmsprop_kernels *rmsprop_kernels_best(void);

#endif
