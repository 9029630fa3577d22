/* A training loop in C: it fits a line to points, and one call updates all parameters in place. */
#include <math.h>
#include <stdio.h>

#include <fusedstep/fusedstep.h>

static int failed(void) {
  fprintf(stderr, "%s\n", fusedstep_last_error());
  return 1;
}

int main(void) {
  double slope = 0.0, offset = 0.0, slope_grad = 0.0, offset_grad = 0.0;

  /* Arrays are borrowed: memory, shape, strides (NULL: C order), type, number of dimensions. */
  const int64_t one[1] = {1};
  const fusedstep_parameter params[2] = {{"slope", {&slope, one, NULL, FUSEDSTEP_FLOAT64, 1}, 0},
                                         {"offset", {&offset, one, NULL, FUSEDSTEP_FLOAT64, 1}, 0}};
  const fusedstep_array grads[2] = {{&slope_grad, one, NULL, FUSEDSTEP_FLOAT64, 1},
                                    {&offset_grad, one, NULL, FUSEDSTEP_FLOAT64, 1}};

  /* Rules and options have the names that they have in Python. */
  fusedstep_rule* rule;
  fusedstep_optimizer* optimizer;
  if (fusedstep_rule_create("rmsprop", NULL, &rule) != FUSEDSTEP_OK) return failed();
  const fusedstep_rule* groups[1] = {rule};
  if (fusedstep_optimizer_create(groups, 1, params, 2, &optimizer) != FUSEDSTEP_OK) return failed();

  fusedstep_step_options options;
  if (fusedstep_step_options_init(&options, sizeof options) != FUSEDSTEP_OK) return failed();
  options.grad_scale = 101.0; /* the gradients are sums over 101 points */
  options.clip_norm = 1.0;
  options.zero_grads = 1;

  fusedstep_step_report report = {.size = sizeof report};
  for (int epoch = 0; epoch < 300; ++epoch) {
    for (int i = -50; i <= 50; ++i) {
      const double x = i / 50.0;
      const double error = slope * x + offset - (3.0 * x - 2.0);
      slope_grad += error * x;
      offset_grad += error;
    }
    if (fusedstep_rule_set(rule, "lr", 0.1 * pow(0.98, epoch)) != FUSEDSTEP_OK) return failed();
    if (fusedstep_optimizer_set(optimizer, 0, rule) != FUSEDSTEP_OK) return failed();
    if (fusedstep_optimizer_step(optimizer, grads, 2, &options, &report) != FUSEDSTEP_OK) return failed();
  }
  printf("slope %.4f, offset %.4f after %lld steps\n", slope, offset, (long long)report.step);

  /* A call that fails returns a code and changes nothing. */
  if (fusedstep_rule_set(rule, "lr", -1.0) == FUSEDSTEP_INVALID_ARGUMENT) {
    printf("refused: %s\n", fusedstep_last_error());
  }
  fusedstep_optimizer_destroy(optimizer);
  fusedstep_rule_destroy(rule);
  return 0;
}
