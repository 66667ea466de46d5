/* The floating-point environment of the contract: round to nearest, subnormals kept, no traps.
 * Between enter and leave make one call that the compiler can't see through: it may move arithmetic
 * that it can see past the instruction that sets the environment. */
#ifndef RMSPROP_FENV_H
#define RMSPROP_FENV_H

#include <stdint.h>

#if defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>
#define RMSPROP_MXCSR_FLAGS 0x3fu     /* sticky exception flags: they stay as they fall */
#define RMSPROP_MXCSR_DEFAULT 0x1f80u /* all traps masked, to nearest, no FTZ, no DAZ */
typedef unsigned int rmsprop_fenv;
static inline rmsprop_fenv rmsprop_fenv_enter(void)
{
    const rmsprop_fenv found = _mm_getcsr();
    if ((found & ~RMSPROP_MXCSR_FLAGS) != RMSPROP_MXCSR_DEFAULT) {
        _mm_setcsr(RMSPROP_MXCSR_DEFAULT | (found & RMSPROP_MXCSR_FLAGS));
    }
    return found;
}
static inline void rmsprop_fenv_leave(rmsprop_fenv found)
{
    if ((found & ~RMSPROP_MXCSR_FLAGS) != RMSPROP_MXCSR_DEFAULT) {
        _mm_setcsr(found);
    }
}
#elif defined(__aarch64__) && defined(__GNUC__)
typedef uint64_t rmsprop_fenv;
static inline rmsprop_fenv rmsprop_fenv_enter(void)
{
    rmsprop_fenv found;
    __asm__ volatile("mrs %0, fpcr" : "=r"(found));
    if (found != 0) {
        __asm__ volatile("msr fpcr, %0" : : "r"((rmsprop_fenv)0) : "memory");
    }
    return found;
}
static inline void rmsprop_fenv_leave(rmsprop_fenv found)
{
    if (found != 0) {
        __asm__ volatile("msr fpcr, %0" : : "r"(found) : "memory");
    }
}
#else
#include <fenv.h>
typedef fenv_t rmsprop_fenv;
static inline rmsprop_fenv rmsprop_fenv_enter(void)
{
    rmsprop_fenv found;
    fegetenv(&found);
    fesetenv(FE_DFL_ENV);
    return found;
}
static inline void rmsprop_fenv_leave(rmsprop_fenv found)
{
    fesetenv(&found);
}
#endif

#endif
