// Chooses the kernels for this machine, once. Lists, names and forces instruction sets.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "include/fusedstep/fusedstep.hpp"  // isa(), available_isas(), force_isa()
#include "loops/kernel.hpp"

namespace fusedstep {

// The kernels in use: those of this machine's best instruction set, unless another one was forced.
const Kernels& kernels();

// The instruction sets that were compiled, the plainest first. This machine may lack some.
std::vector<std::string> compiled_isas();

}  // namespace fusedstep
