// The public spans as arrays, checked, and back.
#pragma once

#include "checks.hpp"
#include "include/fusedstep/fusedstep.hpp"

namespace fusedstep {

// std::invalid_argument for another type, a read-only span where it is written, misaligned memory, impossible extents.
Array checked(const AnySpan& span, const Label& label, TypeSet types, bool written);

AnySpan span_of(const Array& array);

// Whether two spans are the same array, in the same place.
bool same(const AnySpan& a, const AnySpan& b);

}  // namespace fusedstep
