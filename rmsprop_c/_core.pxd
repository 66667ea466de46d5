"""The kernels for other Cython code: ``from rmsprop_c._core cimport update_f32, rmsprop_scalars``.

Compile with ``include_dirs=[rmsprop_c.get_include()]``. The kernel is the one that the package
chose for this processor. It runs in the floating-point environment of the contract (to nearest,
subnormals kept) and restores yours.
"""


cdef extern from "rmsprop.h" nogil:
    ctypedef struct rmsprop_scalars:
        double learning_rate
        double rho
        double epsilon
        double scale
        double clipvalue
        double rho_power
        double momentum
        double lr_outside
        double weight_decay
        double ema_momentum


cdef void update_f32(float* p, const float* g, float* a, size_t n,
                     const rmsprop_scalars* scalars) noexcept nogil
cdef void update_f64(double* p, const double* g, double* a, size_t n,
                     const rmsprop_scalars* scalars) noexcept nogil
