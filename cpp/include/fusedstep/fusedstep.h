/* fusedstep for C, and for everything that can call C: the same kernels and the same bits as in Python and C++.
 *
 *   float w[N], g[N], v[N] = {0};
 *   int64_t shape[1] = {N};
 *   fusedstep_array p = {w, shape, NULL, FUSEDSTEP_FLOAT32, 1}, grad = {g, ...}, square_avg = {v, ...};
 *   fusedstep_rule* rule;
 *   fusedstep_rule_create("rmsprop", NULL, &rule);
 *   fusedstep_rule_set(rule, "lr", 1e-3);
 *   if (fusedstep_step(rule, 1, &p, &grad, &square_avg, 1) != FUSEDSTEP_OK) puts(fusedstep_last_error());
 *   fusedstep_rule_destroy(rule);
 *
 * Arrays are borrowed, never copied. A call that fails has written nothing. C11, no exception crosses this border.
 * Rules and their options have names, which are those of Python: a new rule or option does not change this interface.
 */
#ifndef FUSEDSTEP_H
#define FUSEDSTEP_H

#include <stdint.h>

#ifndef FUSEDSTEP_API
#if defined(FUSEDSTEP_SHARED) && defined(_WIN32)
#define FUSEDSTEP_API __declspec(dllexport)
#elif defined(FUSEDSTEP_SHARED) && defined(__GNUC__)
#define FUSEDSTEP_API __attribute__((visibility("default")))
#else
#define FUSEDSTEP_API
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Grows when a struct below changes, except by new members at its end. */
#define FUSEDSTEP_ABI_VERSION 1

enum {
  FUSEDSTEP_OK = 0,
  FUSEDSTEP_INVALID_ARGUMENT = 1, /* see fusedstep_last_error() */
  FUSEDSTEP_NONFINITE = 2,        /* an inf or a NaN in a gradient, with FUSEDSTEP_RAISE */
  FUSEDSTEP_OUT_OF_MEMORY = 3,
  FUSEDSTEP_INTERNAL = 4
};

/* bfloat16 and float16 as their bits. */
enum {
  FUSEDSTEP_FLOAT32 = 0,
  FUSEDSTEP_FLOAT64 = 1,
  FUSEDSTEP_INT8 = 2,
  FUSEDSTEP_BFLOAT16 = 3,
  FUSEDSTEP_FLOAT16 = 4,
  FUSEDSTEP_UINT16 = 5,
  FUSEDSTEP_INT32 = 6, /* from here on: an index of rows */
  FUSEDSTEP_INT64 = 7,
  FUSEDSTEP_UINT32 = 8,
  FUSEDSTEP_UINT64 = 9
};

/* How numbers of 16 bits are rounded: to nearest, ties to even; or up or down, right in the mean. */
enum { FUSEDSTEP_NEAREST = 0, FUSEDSTEP_STOCHASTIC = 1 };

/* What to do about an inf or a NaN in a gradient: update anyway; skip the step; fail and change nothing. */
enum { FUSEDSTEP_PROPAGATE = 0, FUSEDSTEP_SKIP = 1, FUSEDSTEP_RAISE = 2 };

/* At most 8 dimensions. Strides are in bytes, any sign; NULL: C order without gaps. */
typedef struct fusedstep_array {
  void* data;
  const int64_t* shape;
  const int64_t* strides;
  int32_t dtype;
  int32_t dimensions;
} fusedstep_array;

/* A rule with its options, by the name of its Python function without the underscore: "rmsprop", "adagrad", "rprop", ...
 * An unknown name is an error that lists them. The options, their meanings, ranges and defaults are those of the C++
 * structs in fusedstep/rules/ and of the Python classes. */
typedef struct fusedstep_rule fusedstep_rule;

/* `dialect` is NULL for the defaults, or names the framework whose formula and defaults to take: "torch", "keras", ...
 * Where that framework has no default for lr, lr is NaN and must be set before the first step. */
FUSEDSTEP_API int32_t fusedstep_rule_create(const char* name, const char* dialect, fusedstep_rule** rule);
FUSEDSTEP_API void fusedstep_rule_destroy(fusedstep_rule* rule);

/* Sets an option: a number, or a flag as 0 or 1; a pair of numbers ("etas", "step_sizes"); or one of several names
 * ("momentum_form", "variant"). An unknown option or name is an error that lists the valid ones. */
FUSEDSTEP_API int32_t fusedstep_rule_set(fusedstep_rule* rule, const char* option, double value);
FUSEDSTEP_API int32_t fusedstep_rule_set_pair(fusedstep_rule* rule, const char* option, double first, double second);
FUSEDSTEP_API int32_t fusedstep_rule_set_choice(fusedstep_rule* rule, const char* option, const char* value);

/* Reads an option. The text is static. */
FUSEDSTEP_API int32_t fusedstep_rule_get(const fusedstep_rule* rule, const char* option, double* value);
FUSEDSTEP_API int32_t fusedstep_rule_get_pair(const fusedstep_rule* rule, const char* option, double* first, double* second);
FUSEDSTEP_API int32_t fusedstep_rule_get_choice(const fusedstep_rule* rule, const char* option, const char** value);

/* The name of state number `index` (from 0) that the rule uses with these options, in the order in which
 * fusedstep_step() takes them; NULL after the last. */
FUSEDSTEP_API const char* fusedstep_rule_state(const fusedstep_rule* rule, int32_t index);

/* Updates one parameter in place. `step` counts its updates from 1. `states` are the `count` arrays that the rule uses
 * with these options, for example
 *   rmsprop: square_avg, grad_avg (centered), momentum_buffer (momentum > 0)
 *   adagrad: square_sum          adagrad_norm: square_sum (no dimensions)
 *   rprop: step_size, prev_sign (int8, of which only the sign counts) */
FUSEDSTEP_API int32_t fusedstep_step(const fusedstep_rule* rule, int64_t step, const fusedstep_array* parameter,
                                     const fusedstep_array* gradient, const fusedstep_array* states, int32_t count);

/* The same for a parameter or states of 16 bits. `key` is that of the noise that rounds them, see fusedstep_noise_key();
 * NULL rounds to nearest. `param_low` is NULL, or the low halves (uint16) of a bfloat16 parameter: the two are a float. */
FUSEDSTEP_API int32_t fusedstep_step_narrow(const fusedstep_rule* rule, int64_t step, const fusedstep_array* parameter,
                                            const fusedstep_array* gradient, const fusedstep_array* states, int32_t count,
                                            const uint64_t* key, const fusedstep_array* param_low);

/* The key that an optimizer uses at update number `step` of the parameter `name`. */
FUSEDSTEP_API int32_t fusedstep_noise_key(uint64_t seed, int64_t step, const char* name, uint64_t* key);

/* The same from the gradients of some rows: row index[k] has values[k], which are added where a row is there twice, in this
 * order. `index` has one dimension; `values` has the parameter's shape, except that the first extent is that of the index.
 * The other rows are not updated. `key` and `param_low` may be NULL, and are for 16 bits, as above. */
FUSEDSTEP_API int32_t fusedstep_step_rows(const fusedstep_rule* rule, int64_t step, const fusedstep_array* parameter,
                                          const fusedstep_array* index, const fusedstep_array* values,
                                          const fusedstep_array* states, int32_t count, const uint64_t* key,
                                          const fusedstep_array* param_low);

/* The norm of all gradients together. */
FUSEDSTEP_API int32_t fusedstep_norm(const fusedstep_array* gradients, int64_t count, double* norm);

/* Many parameters with their states, bound once. One call updates all of them. */
typedef struct fusedstep_optimizer fusedstep_optimizer;

typedef struct fusedstep_parameter {
  const char* name;
  fusedstep_array array;
  int64_t group;
} fusedstep_parameter;

/* What a whole step does besides the update. 0 turns an option off (grad_scale: 1). */
typedef struct fusedstep_step_options {
  uint64_t size;
  double grad_scale, clip_norm, clip_value;
  double loss; /* NaN: not given */
  uint8_t zero_grads, nonfinite;
} fusedstep_step_options;

typedef struct fusedstep_step_report {
  uint64_t size;
  int64_t step;     /* steps taken so far */
  double grad_norm; /* NaN where no option needed it */
  uint8_t skipped;
} fusedstep_step_report;

/* One rule per group, all of the same name; they are copied. The optimizer makes the states. */
FUSEDSTEP_API int32_t fusedstep_optimizer_create(const fusedstep_rule* const* rules, int64_t groups,
                                                 const fusedstep_parameter* parameters, int64_t count,
                                                 fusedstep_optimizer** optimizer);
/* The same with numbers of 16 bits: one storage per group, and the seed of stochastic rounding. */
typedef struct fusedstep_storage {
  uint64_t size;
  int32_t state_dtype; /* FUSEDSTEP_BFLOAT16, or -1: the type of the computation */
  uint8_t rounding;    /* of what has 16 bits */
  uint8_t master;      /* bfloat16 parameters keep low halves, the state "param_low": the two are a float */
} fusedstep_storage;

FUSEDSTEP_API int32_t fusedstep_optimizer_create_narrow(const fusedstep_rule* const* rules, const fusedstep_storage* storage,
                                                        int64_t groups, const fusedstep_parameter* parameters, int64_t count,
                                                        uint64_t seed, fusedstep_optimizer** optimizer);

/* Sets the low halves of a parameter to 0, as is needed after its array was written. */
FUSEDSTEP_API int32_t fusedstep_optimizer_sync_master(fusedstep_optimizer* optimizer, int64_t parameter);

FUSEDSTEP_API void fusedstep_optimizer_destroy(fusedstep_optimizer* optimizer);

/* Fills a struct with the defaults; `size` is the caller's sizeof *options. */
FUSEDSTEP_API int32_t fusedstep_step_options_init(fusedstep_step_options* options, uint64_t size);

/* One gradient per parameter, in order; one whose data is NULL leaves its parameter out. `options` and `report` may be
 * NULL; the caller sets a report's size. */
FUSEDSTEP_API int32_t fusedstep_optimizer_step(fusedstep_optimizer* optimizer, const fusedstep_array* gradients,
                                               int64_t count, const fusedstep_step_options* options,
                                               fusedstep_step_report* report);

/* The same, where gradients may be those of some rows: `indices` has an index for each gradient; one of no dimensions whose
 * data is NULL says that the gradient is dense. */
FUSEDSTEP_API int32_t fusedstep_optimizer_step_rows(fusedstep_optimizer* optimizer, const fusedstep_array* indices,
                                                    const fusedstep_array* gradients, int64_t count,
                                                    const fusedstep_step_options* options, fusedstep_step_report* report);

/* New options for a group, from the next step on. */
FUSEDSTEP_API int32_t fusedstep_optimizer_set(fusedstep_optimizer* optimizer, int64_t group, const fusedstep_rule* rule);

/* The live array of a state; its shape and strides are valid as long as the optimizer. */
FUSEDSTEP_API int32_t fusedstep_optimizer_state(fusedstep_optimizer* optimizer, int64_t parameter, const char* name,
                                                fusedstep_array* state);

/* Threads that a large step may use; the instruction set in use, "" for the best. */
FUSEDSTEP_API int32_t fusedstep_num_threads(void);
FUSEDSTEP_API int32_t fusedstep_set_num_threads(int32_t n);
FUSEDSTEP_API const char* fusedstep_isa(void);
FUSEDSTEP_API int32_t fusedstep_force_isa(const char* name);

/* The message of the last call that failed in this thread. */
FUSEDSTEP_API const char* fusedstep_last_error(void);
FUSEDSTEP_API int32_t fusedstep_abi_version(void);
FUSEDSTEP_API const char* fusedstep_version(void);

#ifdef __cplusplus
}
#endif

#endif
