// Converts the public spans to checked arrays, and back.
#pragma once

#include "checks.hpp"
#include "include/fusedstep/fusedstep.hpp"

namespace fusedstep {

// Throws std::invalid_argument for a wrong type, a read-only span that would be written, misaligned memory or impossible
// extents.
Array checked(const AnySpan& span, const Label& label, TypeSet types, bool written);

AnySpan span_of(const Array& array);

// Whether two spans are the same array in the same place.
bool same(const AnySpan& a, const AnySpan& b);

}  // namespace fusedstep
