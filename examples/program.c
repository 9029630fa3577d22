/* A training loop in C: a line is fitted to points, and one call updates all parameters in place. */
#include <math.h>
#include <stdio.h>

#include <fusedstep/fusedstep.h>

static int failed(void) {
  fprintf(stderr, "%s\n", fusedstep_last_error());
  return 1;
}

int main(void) {
  double slope = 0.0, offset = 0.0, slope_grad = 0.0, offset_grad = 0.0;

  /* Arrays are borrowed: memory, shape, strides (NULL: rows in a row), type, number of dimensions. */
  const int64_t one[1] = {1};
  const fusedstep_parameter params[2] = {{"slope", {&slope, one, NULL, FUSEDSTEP_FLOAT64, 1}, 0},
                                         {"offset", {&offset, one, NULL, FUSEDSTEP_FLOAT64, 1}, 0}};
  const fusedstep_array grads[2] = {{&slope_grad, one, NULL, FUSEDSTEP_FLOAT64, 1},
                                    {&offset_grad, one, NULL, FUSEDSTEP_FLOAT64, 1}};

  /* Every struct of options is filled with the defaults first. */
  fusedstep_rmsprop rule;
  fusedstep_step_options options;
  if (fusedstep_rmsprop_init(&rule, sizeof rule) != FUSEDSTEP_OK) return failed();
  if (fusedstep_step_options_init(&options, sizeof options) != FUSEDSTEP_OK) return failed();
  options.grad_scale = 101.0; /* the gradients are sums over 101 points */
  options.clip_norm = 1.0;
  options.zero_grads = 1;

  const void *groups[1] = {&rule};
  fusedstep_optimizer *optimizer;
  if (fusedstep_optimizer_create("rmsprop", groups, 1, params, 2, &optimizer) != FUSEDSTEP_OK) return failed();

  fusedstep_step_report report = {.size = sizeof report};
  for (int epoch = 0; epoch < 300; ++epoch) {
    for (int i = -50; i <= 50; ++i) {
      const double x = i / 50.0;
      const double error = slope * x + offset - (3.0 * x - 2.0);
      slope_grad += error * x;
      offset_grad += error;
    }
    rule.lr = 0.1 * pow(0.98, epoch);
    if (fusedstep_optimizer_set(optimizer, 0, &rule) != FUSEDSTEP_OK) return failed();
    if (fusedstep_optimizer_step(optimizer, grads, 2, &options, &report) != FUSEDSTEP_OK) return failed();
  }
  printf("slope %.4f, offset %.4f after %lld steps\n", slope, offset, (long long)report.step);
  fusedstep_optimizer_destroy(optimizer);

  /* A call that fails returns a code, has written nothing, and says what was wrong. */
  rule.lr = -1.0;
  if (fusedstep_optimizer_create("rmsprop", groups, 1, params, 2, &optimizer) == FUSEDSTEP_INVALID_ARGUMENT) {
    printf("refused: %s\n", fusedstep_last_error());
  }
  return 0;
}
