// Copies that turn columns into rows: what makes a tile of an array dense that lies in the other order.
#pragma once

#include <cstdint>

namespace fusedstep {

// to[r][c] = from[c][r] for elements of 4 or 8 bytes: the elements of a column of `from` follow each other, as do those of
// a row of `to`; steps, in bytes, lead from one column, or row, to the next.
void transpose(std::int64_t item_size, std::int64_t rows, std::int64_t columns, const char* from, std::int64_t from_step,
               char* to, std::int64_t to_step);

}  // namespace fusedstep
