/* The kernels as the package calls them: a row per instruction set and dtype, chosen at run time.
 */
#ifndef RMSPROP_KERNELS_H
#define RMSPROP_KERNELS_H

#include "../include/rmsprop.h"

/* A row. Pointers are to elements of its dtype; see include/rmsprop.h for what each function does.
 */
typedef struct {
    const char *isa;
    /* A variant and what goes around it. Buffers that no pass needs may be NULL. */
    void (*run)(int variant, int passes, void *p, void *g, void *a, void *m, void *mean, void *ema,
                void *sum, size_t n, const rmsprop_scalars *scalars);
    void (*block_sums)(const void *g, size_t n, double *sums);
    int (*finite)(const void *g, size_t n, const rmsprop_scalars *scalars);
    const char *roots; /* what `run` computes them with: "fma", or "sqrt" for the processor's own */
} rmsprop_kernels;

/* The two rows of an instruction set: float32, and float64 behind it. */
enum { RMSPROP_FLOAT32, RMSPROP_FLOAT64, RMSPROP_DTYPES };

/* The rows of the i-th instruction set that was compiled, widest last; NULL behind the last. */
const rmsprop_kernels *rmsprop_kernels_compiled(int i);

/* Can this processor, under this operating system, run them? */
int rmsprop_kernels_supported(const rmsprop_kernels *kernels);

/* The fastest supported ones. */
const rmsprop_kernels *rmsprop_kernels_best(void);

#endif
