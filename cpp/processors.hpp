// How many processors there are for this process.
#pragma once

namespace fusedstep {

// Those that it may run on, or what the quotas of its control groups come to, rounded up, if that is less. At least 1.
int usable_processors();

}  // namespace fusedstep
