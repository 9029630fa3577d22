// Copies that turn columns into rows. They make a tile of an array in the other order dense.
#pragma once

#include <cstdint>

namespace fusedstep {

// Sets to[r][c] = from[c][r] for elements of 4 or 8 bytes. The elements of a column of `from` are next to each other, and so
// are those of a row of `to`. The steps, in bytes, lead from one column or row to the next.
void transpose(std::int64_t item_size, std::int64_t rows, std::int64_t columns, const char* from, std::int64_t from_step,
               char* to, std::int64_t to_step);

}  // namespace fusedstep
