// A start-up check of the BLAS library that the process found.
#pragma once

namespace lapidary {

/// Multiplies two 64 x 64 matrices whose product is exact in float32 and compares with plain loops. Throws
/// Error (hardware) naming the library's configuration if an element differs.
void check_blas();

}  // namespace lapidary
