// The number of processors that this process can use.
#pragma once

namespace fusedstep {

// Returns the processors that it may run on, or the quota of its control groups, rounded up, if that is less. At least 1.
int usable_processors();

}  // namespace fusedstep
