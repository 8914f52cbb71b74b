#include "spread.h"

#include <algorithm>
#include <cstring>

namespace zeropoint {
namespace {

constexpr uint8_t kNothing = 0x80;  // byte shuffles make 0 of it

// Four lanes' bytes of a word, by piece: where 16 bytes are read, from a pixel's first one on, and which of those each
// byte is. Four lanes of four bytes need four such windows at most.
struct Windows {
  int64_t count = 0;
  int32_t start[4] = {0, 0, 0, 0};
  uint8_t byte[4][16];
  Windows() { std::memset(byte, kNothing, sizeof byte); }
};

// Windows begin at multiples of 16 where that fits, so that those of a register's lanes are one run, and end with the
// pixel unless it has fewer bytes (its copy has room behind it).
int32_t window_start(int64_t first, int64_t last, int64_t channels) {
  const int64_t aligned = first / 16 * 16;
  return static_cast<int32_t>(std::min(last < aligned + 16 ? aligned : first, std::max<int64_t>(0, channels - 16)));
}

// Of the four output channels from `column` on.
Windows windows_of(const PackedHeader& h, int64_t column, int64_t word) {
  const int64_t rows = word_rows(h.kc), channels = h.n / h.filters * h.kc;
  int64_t source[16];  // by byte; -1: none
  for (int64_t lane = 0; lane < 4; ++lane)
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t channel = rows > 1 ? i % h.kc : 4 * word + i;
      const bool real = column + lane < h.n && channel < h.kc;
      source[4 * lane + i] = real ? (column + lane) / h.filters * h.kc + channel : -1;
    }
  Windows found;
  if (rows > 1) {  // a piece per kernel row: four lanes see eight channels at most
    found.count = rows;
    for (int64_t row = 0; row < rows; ++row) {
      const auto in_row = [&](int64_t i) { return source[i] >= 0 && i % 4 / h.kc == row; };
      int64_t first = channels, last = 0;
      for (int64_t i = 0; i < 16; ++i)
        if (in_row(i)) {
          first = std::min(first, source[i]);
          last = std::max(last, source[i]);
        }
      if (first > last) continue;
      found.start[row] = window_start(first, last, channels);
      for (int64_t i = 0; i < 16; ++i)
        if (in_row(i)) found.byte[row][i] = static_cast<uint8_t>(source[i] - found.start[row]);
    }
    return found;
  }
  for (int64_t done = -1;;) {  // sources up to that one have their window
    int64_t first = channels, last = 0;
    for (const int64_t s : source)
      if (s > done) first = std::min(first, s);
    if (first == channels) return found;
    for (const int64_t s : source)
      if (s > done && s < first + 16) last = std::max(last, s);
    const int32_t start = window_start(first, last, channels);
    found.start[found.count] = start;
    for (int64_t i = 0; i < 16; ++i)
      if (source[i] > done && source[i] <= last) found.byte[found.count][i] = static_cast<uint8_t>(source[i] - start);
    ++found.count;
    done = last;
  }
}

// f(word of a kernel row, vector, vectors of its panel, the panel's first column), as they lie in the layout.
template <class F>
void for_each_vector(const PackedHeader& h, const F& f) {
  const int64_t panel_columns = static_cast<int64_t>(h.lanes) * h.panel_vectors;
  for (int64_t first = 0; first < h.n; first += panel_columns) {
    const int64_t vectors = vectors_of_panel(h.n - first, h.lanes, h.panel_vectors);
    for (int64_t word = 0; word < row_words(h.kc); ++word)
      for (int64_t v = 0; v < vectors; ++v) f(word, v, vectors, first);
  }
}

}  // namespace

int64_t spread_pieces(const PackedHeader& h) {
  int64_t most = 1;
  for_each_vector(h, [&](int64_t word, int64_t v, int64_t vectors, int64_t first) {
    for (int64_t lane = 0; lane < h.lanes; lane += 4)
      most = std::max(most, windows_of(h, first + panel_column(v, lane, vectors), word).count);
  });
  return most == 3 ? 4 : most;
}

void write_spread(const PackedHeader& h, uint8_t* out) {
  for_each_vector(h, [&](int64_t word, int64_t v, int64_t vectors, int64_t first) {
    for (int64_t lane = 0; lane < h.lanes; lane += 4) {
      const Windows windows = windows_of(h, first + panel_column(v, lane, vectors), word);
      for (int64_t piece = 0; piece < h.pieces; ++piece) {
        uint8_t* to = out + piece * spread_piece_bytes(h.lanes);
        std::memcpy(to + lane, &windows.start[piece], 4);
        std::memcpy(to + h.lanes + 4 * lane, windows.byte[piece], 16);
      }
    }
    out += h.pieces * spread_piece_bytes(h.lanes);
  });
}

}  // namespace zeropoint
