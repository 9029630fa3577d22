// Picks the kernels for this machine, once; lists, names and forces instruction sets.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "sweep/kernel.hpp"

namespace fusedstep {

// The kernels in use: those of the best instruction set of this machine, unless one was forced.
const Kernels& kernels();

std::string isa();
std::vector<std::string> compiled_isas();
std::vector<std::string> available_isas();

// std::invalid_argument, listing the valid names, if `name` is none of available_isas(). Empty: the best one.
void force_isa(std::string_view name);

}  // namespace fusedstep
