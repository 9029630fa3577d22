/* fusedstep for C, and for everything that can call C: the same kernels and the same bits as in Python and C++.
 *
 *   float w[N], g[N], v[N] = {0};
 *   int64_t shape[1] = {N};
 *   fusedstep_array p = {w, shape, NULL, FUSEDSTEP_FLOAT32, 1}, grad = {g, ...}, square_avg = {v, ...};
 *   fusedstep_rmsprop rule;
 *   fusedstep_rmsprop_init(&rule, sizeof rule);
 *   rule.lr = 1e-3;
 *   if (fusedstep_rmsprop_step(&rule, 1, &p, &grad, &square_avg, 1) != FUSEDSTEP_OK) puts(fusedstep_last_error());
 *
 * Arrays are borrowed, never copied. A call that fails has written nothing. C11, no exception crosses this border.
 */
#ifndef FUSEDSTEP_H
#define FUSEDSTEP_H

#include <stdint.h>

#ifndef FUSEDSTEP_API
#if defined(FUSEDSTEP_SHARED) && defined(__GNUC__)
#define FUSEDSTEP_API __attribute__((visibility("default")))
#else
#define FUSEDSTEP_API
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a struct below changes in any way but by new members at its end. */
#define FUSEDSTEP_ABI_VERSION 1

enum {
  FUSEDSTEP_OK = 0,
  FUSEDSTEP_INVALID_ARGUMENT = 1, /* see fusedstep_last_error() */
  FUSEDSTEP_NONFINITE = 2,        /* an inf or a NaN in a gradient, with FUSEDSTEP_RAISE */
  FUSEDSTEP_OUT_OF_MEMORY = 3,
  FUSEDSTEP_INTERNAL = 4
};

enum { FUSEDSTEP_FLOAT32 = 0, FUSEDSTEP_FLOAT64 = 1, FUSEDSTEP_INT8 = 2 };

enum { FUSEDSTEP_MOMENTUM_TORCH = 0, FUSEDSTEP_MOMENTUM_TF = 1 };

enum {
  FUSEDSTEP_RPROP_MINUS = 0,
  FUSEDSTEP_RPROP_PLUS = 1,
  FUSEDSTEP_IRPROP_MINUS = 2,
  FUSEDSTEP_IRPROP_MOVE = 3,
  FUSEDSTEP_IRPROP_PLUS = 4,
  FUSEDSTEP_GRPROP_SLR = 5,
  FUSEDSTEP_GRPROP_SAG = 6
};

/* What to do about an inf or a NaN in a gradient: nothing; change no byte; change no byte and fail. */
enum { FUSEDSTEP_PROPAGATE = 0, FUSEDSTEP_SKIP = 1, FUSEDSTEP_RAISE = 2 };

/* At most 8 dimensions. Strides are in bytes, any sign; NULL for rows in a row (C order). */
typedef struct fusedstep_array {
  void* data;
  const int64_t* shape;
  const int64_t* strides;
  int32_t dtype;
  int32_t dimensions;
} fusedstep_array;

/* Hyperparameters: ranges and meanings are those of the C++ structs in rules.hpp. `size` is the struct's, set by its
 * _init: a library that knows more members takes their defaults. `initial_...` says where an optimizer starts a state. */

/* v <- alpha v + (1 - alpha) g^2;  p <- p - lr g / (sqrt(v) + eps) */
typedef struct fusedstep_rmsprop {
  uint64_t size;
  double lr, alpha, eps;
  uint8_t eps_inside_sqrt, centered;
  double momentum;
  uint8_t nesterov, momentum_form, bias_correction;
  double weight_decay;
  uint8_t decoupled_weight_decay, maximize;
  double initial_square_avg;
} fusedstep_rmsprop;

/* s <- s + g^2;  p <- p - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps) */
typedef struct fusedstep_adagrad {
  uint64_t size;
  double lr, eps;
  uint8_t eps_inside_sqrt;
  double lr_decay, weight_decay;
  uint8_t decoupled_weight_decay, maximize;
  double initial_accumulator_value;
} fusedstep_adagrad;

/* D <- clip(D eta+ or D eta-, lo, hi);  p <- p - sign(g) D;  an optimizer starts D at lr */
typedef struct fusedstep_rprop {
  uint64_t size;
  double lr, etas[2], step_sizes[2];
  uint8_t variant, loss_increased;
  double weight_decay;
  uint8_t decoupled_weight_decay, maximize;
} fusedstep_rprop;

/* s <- s + g^2;  a <- lr / sqrt(s);  q <- p - a g;  p <- sign(q) max(|q| - a l1, 0) / (1 + l2 a) */
typedef struct fusedstep_proximal_adagrad {
  uint64_t size;
  double lr, l1, l2, weight_decay;
  uint8_t decoupled_weight_decay, maximize;
  double initial_accumulator_value;
} fusedstep_proximal_adagrad;

/* G <- G + g;  s <- s + g^2;  p <- -sign(G) lr max(|G| - l1 t, 0) / (l2 t lr + sqrt(s)) */
typedef struct fusedstep_adagrad_da {
  uint64_t size;
  double lr, l1, l2, weight_decay;
  uint8_t decoupled_weight_decay, maximize;
  double initial_accumulator_value;
} fusedstep_adagrad_da;

/* s <- s + ||g||^2, one scalar an array;  p <- p - lr g / (sqrt(s) + eps) */
typedef struct fusedstep_adagrad_norm {
  uint64_t size;
  double lr, eps, weight_decay;
  uint8_t decoupled_weight_decay, maximize;
  double initial_accumulator_value;
} fusedstep_adagrad_norm;

/* _init fills a struct with the defaults; `size` is its size where the caller was compiled: sizeof *options.
 *
 * _step is one update of one parameter in place. `time` counts its updates from 1. `states` are those that the rule uses
 * with these hyperparameters, in this order:
 *   rmsprop: square_avg, grad_avg (centered), momentum_buffer (momentum > 0)
 *   adagrad, proximal_adagrad: square_sum          adagrad_da: grad_sum, square_sum
 *   adagrad_norm: square_sum (no dimensions)       rprop: step_size, prev_sign (int8, of which the sign counts) */
#define FUSEDSTEP_DECLARE(rule)                                                                                  \
  FUSEDSTEP_API int32_t fusedstep_##rule##_init(fusedstep_##rule* options, uint64_t size);                       \
  FUSEDSTEP_API int32_t fusedstep_##rule##_step(const fusedstep_##rule* options, int64_t time,                   \
                                                const fusedstep_array* parameter, const fusedstep_array* gradient, \
                                                const fusedstep_array* states, int32_t count)
FUSEDSTEP_DECLARE(rmsprop);
FUSEDSTEP_DECLARE(adagrad);
FUSEDSTEP_DECLARE(rprop);
FUSEDSTEP_DECLARE(proximal_adagrad);
FUSEDSTEP_DECLARE(adagrad_da);
FUSEDSTEP_DECLARE(adagrad_norm);
#undef FUSEDSTEP_DECLARE

/* As _init, with the formula and the defaults of another framework, by the name of its dialect: "torch", "keras", ...
 * `lr` is NaN, which no step takes, where the framework has no default. */
#define FUSEDSTEP_DECLARE_LIKE(rule) \
  FUSEDSTEP_API int32_t fusedstep_##rule##_like(fusedstep_##rule* options, uint64_t size, const char* dialect)
FUSEDSTEP_DECLARE_LIKE(rmsprop);
FUSEDSTEP_DECLARE_LIKE(adagrad);
FUSEDSTEP_DECLARE_LIKE(rprop);
#undef FUSEDSTEP_DECLARE_LIKE

/* The norm of all gradients together. */
FUSEDSTEP_API int32_t fusedstep_norm(const fusedstep_array* gradients, int64_t count, double* norm);

/* Many parameters with their states, bound once; a step of all of them is one call. */
typedef struct fusedstep_optimizer fusedstep_optimizer;

typedef struct fusedstep_parameter {
  const char* name;
  fusedstep_array array;
  int64_t group;
} fusedstep_parameter;

/* What a whole step does beside the update; 0 where something is not asked for (grad_scale: 1). */
typedef struct fusedstep_step_options {
  uint64_t size;
  double grad_scale, clip_norm, clip_value;
  double loss; /* NaN: not given */
  uint8_t zero_grads, nonfinite;
} fusedstep_step_options;

typedef struct fusedstep_step_report {
  uint64_t size;
  int64_t step;     /* steps taken so far */
  double grad_norm; /* NaN where nothing asked for it */
  uint8_t skipped;
} fusedstep_step_report;

/* `options` points at one struct a group, all of the rule named by `rule` ("rmsprop", "adagrad", "rprop", ...). */
FUSEDSTEP_API int32_t fusedstep_optimizer_create(const char* rule, const void* const* options, int64_t groups,
                                                 const fusedstep_parameter* parameters, int64_t count,
                                                 fusedstep_optimizer** optimizer);
FUSEDSTEP_API void fusedstep_optimizer_destroy(fusedstep_optimizer* optimizer);
FUSEDSTEP_API int32_t fusedstep_step_options_init(fusedstep_step_options* options, uint64_t size);

/* One gradient a parameter, in order; one whose data is NULL leaves its parameter out. `options` and `report` may be
 * NULL; a report's size is to be set by the caller. */
FUSEDSTEP_API int32_t fusedstep_optimizer_step(fusedstep_optimizer* optimizer, const fusedstep_array* gradients,
                                               int64_t count, const fusedstep_step_options* options,
                                               fusedstep_step_report* report);

/* New hyperparameters for a group. */
FUSEDSTEP_API int32_t fusedstep_optimizer_set(fusedstep_optimizer* optimizer, int64_t group, const void* options);

/* The live array of a state; its shape and strides live as long as the optimizer. */
FUSEDSTEP_API int32_t fusedstep_optimizer_state(fusedstep_optimizer* optimizer, int64_t parameter, const char* name,
                                                fusedstep_array* state);

/* Threads that a large step may use; the instruction set in use, "" for the best. */
FUSEDSTEP_API int32_t fusedstep_num_threads(void);
FUSEDSTEP_API int32_t fusedstep_set_num_threads(int32_t n);
FUSEDSTEP_API const char* fusedstep_isa(void);
FUSEDSTEP_API int32_t fusedstep_force_isa(const char* name);

/* What was wrong with this thread's last call that failed. */
FUSEDSTEP_API const char* fusedstep_last_error(void);
FUSEDSTEP_API int32_t fusedstep_abi_version(void);
FUSEDSTEP_API const char* fusedstep_version(void);

#ifdef __cplusplus
}
#endif

#endif
