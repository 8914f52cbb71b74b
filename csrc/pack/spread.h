// The part of kSmallGroups' layout (pack.h) that tells which of a pixel's bytes go to which lane.
#pragma once
#include "pack.h"

namespace zeropoint {

// The most pieces that a word of any lanes is put together from: 1, 2 or 4.
int64_t spread_pieces(const PackedHeader&);

inline int64_t spread_bytes(const PackedHeader& h) {
  return ceil_div(h.n, h.lanes) * row_words(h.kc) * h.pieces * spread_piece_bytes(h.lanes);
}

void write_spread(const PackedHeader&, uint8_t* out);

}  // namespace zeropoint
