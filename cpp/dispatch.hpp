// Picks the kernels for this machine, once; lists, names and forces instruction sets.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "include/fusedstep/fusedstep.hpp"  // isa(), available_isas(), force_isa()
#include "loops/kernel.hpp"

namespace fusedstep {

// The kernels in use: those of the best instruction set of this machine, unless one was forced.
const Kernels& kernels();

// Those that were compiled, the plainest first, whether this machine has them or not.
std::vector<std::string> compiled_isas();

}  // namespace fusedstep
