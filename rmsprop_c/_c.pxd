"""The C that the binding calls: NumPy's macros, DLPack's struct, rmsprop.h and src/."""
cimport numpy as cnp
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t

cdef extern from *:
    """
    /* -O3 is for the kernels. Here it makes the library a tenth larger and no step faster, and so
     * do copies of functions for constant arguments (15 kB with gcc 16). */
    #if defined(__GNUC__) && !defined(__clang__)
    #pragma GCC optimize("O2", "no-ipa-cp")
    #endif
    /* Python 3.15 has a field of types that Cython 3.2 does not know. */
    #if defined(__GNUC__)
    #pragma GCC diagnostic ignored "-Wmissing-field-initializers"
    #endif
    #if defined(__clang__)
    #define RMSPROP_COMPILER "clang " __clang_version__
    #elif defined(__GNUC__)
    #define RMSPROP_COMPILER "gcc " __VERSION__
    #else
    #define RMSPROP_COMPILER "unknown"
    #endif
    /* Macros of NumPy's C API, on borrowed references: the step's fast path counts none. */
    #define rmsprop_items(sequence) ((void **)PySequence_Fast_ITEMS(sequence))
    #define rmsprop_size(sequence) PySequence_Fast_GET_SIZE(sequence)
    #define rmsprop_is_array(x) (Py_TYPE(x) == &PyArray_Type)
    #define rmsprop_type(x) PyArray_TYPE((PyArrayObject *)(x))
    #define rmsprop_native(x) PyArray_ISNOTSWAPPED((PyArrayObject *)(x))
    #define rmsprop_flags(x) PyArray_FLAGS((PyArrayObject *)(x))
    #define rmsprop_ndim(x) PyArray_NDIM((PyArrayObject *)(x))
    #define rmsprop_dims(x) PyArray_DIMS((PyArrayObject *)(x))
    #define rmsprop_data(x) PyArray_BYTES((PyArrayObject *)(x))
    /* The first fields of DLPack's tensor, which a capsule named "dltensor" holds (version 1.1). */
    typedef struct { int32_t type, id; } rmsprop_dldevice;
    typedef struct { uint8_t code, bits; uint16_t lanes; } rmsprop_dldtype;
    typedef struct {
        void *data;
        rmsprop_dldevice device;
        int32_t ndim;
        rmsprop_dldtype dtype;
        int64_t *shape, *strides; /* in elements; strides may be NULL: C order */
        uint64_t byte_offset;
    } rmsprop_dltensor;
    """
    const char* RMSPROP_COMPILER
    void** rmsprop_items(object)
    Py_ssize_t rmsprop_size(object)
    bint rmsprop_is_array(void*)
    int rmsprop_type(void*)
    bint rmsprop_native(void*)
    int rmsprop_flags(void*)
    int rmsprop_ndim(void*)
    cnp.npy_intp* rmsprop_dims(void*)
    char* rmsprop_data(void*)
    ctypedef struct rmsprop_dldevice:
        int32_t type
    ctypedef struct rmsprop_dldtype:
        uint8_t code
        uint8_t bits
        uint16_t lanes
    ctypedef struct rmsprop_dltensor:
        void* data
        rmsprop_dldevice device
        int32_t ndim
        rmsprop_dldtype dtype
        int64_t* shape
        int64_t* strides
        uint64_t byte_offset

cdef extern from "rmsprop.h" nogil:
    const int RMSPROP_OVERWRITE, RMSPROP_ZERO_GRAD

cdef extern from "src/kernels.h" nogil:
    ctypedef struct rmsprop_kernels:
        const char* isa
        const char* roots
    enum:
        FLOAT32 "RMSPROP_FLOAT32"
        FLOAT64 "RMSPROP_FLOAT64"
    const rmsprop_kernels* rmsprop_kernels_compiled(int)
    bint rmsprop_kernels_supported(const rmsprop_kernels*)
    const rmsprop_kernels* rmsprop_kernels_best()

cdef extern from "src/threads.h" nogil:
    void rmsprop_threads_init()
    int rmsprop_threads_openmp()
    int rmsprop_threads_limit()
    int rmsprop_threads_forks()
    void rmsprop_fork_gate_enter()
    void rmsprop_fork_gate_leave()
    uint64_t rmsprop_threads_self()
    uint64_t rmsprop_threads_survivor()

cdef extern from "src/step.h" nogil:
    enum:
        ACCUMULATOR "RMSPROP_ACCUMULATOR"
        MOVING_AVERAGE "RMSPROP_MOVING_AVERAGE"
        GRADIENT_SUM "RMSPROP_GRADIENT_SUM"
        SLOTS "RMSPROP_SLOTS"
        PANEL "RMSPROP_PANEL"
    const char* SETTINGS "RMSPROP_EACH_SETTING(RMSPROP_SETTING_NAME)"
    ctypedef struct Settings "rmsprop_settings":
        double lr
        double clipnorm
        double parameter_clipnorm
        double initial_accumulator_value
        double weight_decay
        double decoupled_weight_decay
        double nonfinite
        double zero_grad
    ctypedef struct Tensor "rmsprop_tensor":
        char* param
        char* grad
        bint has_grad
        bint active
        char* slots[5]
        cnp.npy_intp size
        const cnp.npy_intp* shape
        int ndim
        int itemsize
        bint fortran
        double lr_scale
        bint decays
        bint pending
        bint nonfinite
        int64_t start
        int64_t stop
        char* copy_back_to
        const cnp.npy_intp* copy_back_strides
        bint copy_back_swapped
        char* grad_copy_back_to
        const cnp.npy_intp* grad_copy_back_strides
    ctypedef struct Job "rmsprop_job":
        const rmsprop_kernels* kernels
        Tensor* tensors
        cnp.npy_intp count
        cnp.npy_intp active
        int64_t elements
        int64_t calls_in_cycle
        bint summing
        bint updates
        bint dry
        bint transposed
        int passes
        Settings settings
        double* block_sums
        char* panels
        size_t blocks
        bint nonfinite
        int shares
        int one_shot
        int required
    int64_t calls_in_a_cycle "rmsprop_cycle"(const Settings*)
    int required_slots "rmsprop_required_slots"(const Settings*)
    bint fit_float32 "rmsprop_fit_float32"(const Settings*)
    void begin "rmsprop_begin"(Job*, const Settings*, int, int64_t, int64_t, bint)
    void begin_lining_up "rmsprop_begin_lining_up"(Job*)
    void line_up "rmsprop_line_up"(Tensor*, Job*)
    void finish "rmsprop_finish"(const Job*)
    void clear "rmsprop_clear"(const Job*)
    void update_alone "rmsprop_update_alone"(const rmsprop_kernels*, void*, const void*, void*,
                                             size_t, const void*)

cdef extern from "src/team.h" nogil:
    ctypedef struct rmsprop_policy:
        int64_t persistent_minimum
        int64_t one_shot_minimum
        int64_t one_shot_share
        int requested
        int processors
    rmsprop_policy rmsprop_team_policy
    ctypedef struct rmsprop_trials:
        pass
    void rmsprop_team_begin(rmsprop_trials*)
    int rmsprop_team_size(int64_t, int*)
    void rmsprop_team_perform(rmsprop_trials*, Job*)
