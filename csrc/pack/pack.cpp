#include "pack.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "spread.h"

namespace zeropoint {
namespace {

int32_t weight_at(const WeightView& w, int64_t n, int64_t kh, int64_t kw, int64_t c) {
  const int32_t zero_point = w.zero_point ? static_cast<int32_t>(w.zero_point[n * w.zero_point_step]) : 0;
  return w.data[n * w.stride_n + c * w.stride_c + kh * w.stride_h + kw * w.stride_w] - zero_point;
}

// The part of a 9-bit weight that repeat `repeat` carries.
int32_t part_of(int32_t w, int64_t repeat) {
  int32_t part = 0;
  for (int64_t i = 0; i <= repeat; ++i) {
    part = std::clamp(w, -128, 127);
    w -= part;
  }
  return part;
}

template <class F>
void for_each_weight(const WeightView& w, int64_t n0, int64_t n1, const F& f) {
  for (int64_t n = n0; n < n1; ++n)
    for (int64_t kh = 0; kh < w.kernel_h; ++kh)
      for (int64_t kw = 0; kw < w.kernel_w; ++kw)
        for (int64_t c = 0; c < w.channels; ++c) f(n, kh, kw, c, weight_at(w, n, kh, kw, c));
}

// Whether an output channel's weights lie side by side, in any order, and are as they are stored.
bool plain(const WeightView& w) {
  const int64_t spatial = w.kernel_h * w.kernel_w;
  const bool channels_first = w.stride_w == 1 && w.stride_h == w.kernel_w && (w.channels == 1 || w.stride_c == spatial);
  return !w.zero_point && (channels_first || (spatial == 1 && w.stride_c == 1));
}

struct Extremes {
  int32_t lowest = 0, highest = 0;
  int64_t sum = 0;  // of magnitudes
};

Extremes extremes_of(const WeightView& w, int64_t n) {
  Extremes found;
  if (plain(w)) {
    const int8_t* data = w.data + n * w.stride_n;
    const int64_t count = w.channels * w.kernel_h * w.kernel_w;
    int8_t lowest = 0, highest = 0;
    for (int64_t first = 0; first < count; first += 1 << 20) {  // 2^20 * 128 < 2^31
      const int64_t end = std::min(count, first + (int64_t{1} << 20));
      int32_t sum = 0;
      for (int64_t i = first; i < end; ++i) {
        lowest = std::min(lowest, data[i]);
        highest = std::max(highest, data[i]);
        sum += data[i] < 0 ? -data[i] : data[i];
      }
      found.sum += sum;
    }
    found.lowest = lowest;
    found.highest = highest;
    return found;
  }
  for_each_weight(w, n, n + 1, [&](int64_t, int64_t, int64_t, int64_t, int32_t value) {
    found.lowest = std::min(found.lowest, value);
    found.highest = std::max(found.highest, value);
    found.sum += value < 0 ? -value : value;
  });
  return found;
}

// U = (2 G) g (2 G)' of F(2x2, 3x3): four times Winograd's transformed kernel, in integers.
void transform_kernel(const int32_t (&g)[3][3], int32_t (&u)[kWinogradPoints]) {
  const auto twice = [](int32_t first, int32_t second, int32_t third, int32_t(&out)[4]) {
    out[0] = 2 * first;
    out[1] = first + second + third;
    out[2] = first - second + third;
    out[3] = 2 * third;
  };
  int32_t rows[3][4];  // [kernel column][point]
  for (int x = 0; x < 3; ++x) twice(g[0][x], g[1][x], g[2][x], rows[x]);
  for (int y = 0; y < 4; ++y) {
    int32_t points[4];
    twice(rows[0][y], rows[1][y], rows[2][y], points);
    std::copy_n(points, 4, u + 4 * y);
  }
}

// One output channel of a GEMM's panels; gives the sum of its weights.
int32_t pack_column(const WeightView& w, const PackedHeader& h, uint8_t* data, int64_t n) {
  const int64_t group = n / h.n, column = n % h.n;
  const int64_t k_groups = ceil_div(h.kc, 4);
  const int64_t panel_cols = static_cast<int64_t>(h.lanes) * h.panel_vectors;
  const int64_t panel = column / panel_cols, in_panel = column % panel_cols;
  const int64_t vectors = vectors_of_panel(h.n - panel * panel_cols, h.lanes, h.panel_vectors);
  uint8_t* base = data + group * h.group_bytes + panel * h.unique_taps * h.repeats * k_groups * panel_cols * 4;
  const int64_t step = vectors * h.lanes * 4;  // bytes between groups of K
  const int64_t first = panel_slot(in_panel, h.lanes, vectors) * 4;
  // Positions of the kernel that are one tap.
  const int64_t joined = w.kernel_h * w.kernel_w / h.unique_taps;
  int32_t sum = 0;
  for (int64_t kh = 0; kh < w.kernel_h; ++kh)
    for (int64_t kw = 0; kw < w.kernel_w; ++kw) {
      const int64_t position = kh * w.kernel_w + kw, tap = position / joined;
      int64_t k = position % joined * w.channels;
      for (int64_t c = 0; c < w.channels; ++c, ++k) {
        const int32_t value = weight_at(w, n, kh, kw, c);
        sum += value;
        for (int64_t repeat = 0; repeat < h.repeats; ++repeat) {
          const int64_t at = ((repeat * h.unique_taps + tap) * k_groups + k / 4) * step + first;
          base[at + k % 4] = static_cast<uint8_t>(h.repeats == 1 ? value : part_of(value, repeat));
        }
      }
    }
  return sum;
}

// Bytes of one point of a panel, or of all panels, of Winograd's layout (pack.h).
int64_t point_bytes(const PackedHeader& h, int64_t columns) { return (1 + 2 * ceil_div(h.kc, 4)) * columns * 4; }

// pack_column for Winograd's algorithm.
int32_t pack_points(const WeightView& w, const PackedHeader& h, uint8_t* data, int64_t n) {
  const int64_t panel_cols = static_cast<int64_t>(h.lanes) * h.panel_vectors, panel = n / panel_cols;
  const int64_t vectors = vectors_of_panel(h.n - panel * panel_cols, h.lanes, h.panel_vectors);
  const int64_t k_groups = ceil_div(h.kc, 4), row = vectors * h.lanes * 4,
                slot = panel_slot(n % panel_cols, h.lanes, vectors);
  const int64_t lane = slot % h.lanes * 4, vector = slot / h.lanes * h.lanes * 4;
  uint8_t* base = data + panel * kWinogradPoints * point_bytes(h, panel_cols);
  int32_t sum = 0;
  std::vector<int16_t> points(static_cast<size_t>(kWinogradPoints * 4 * k_groups));  // [point][channel]
  for (int64_t c = 0; c < w.channels; ++c) {
    int32_t kernel[3][3], u[kWinogradPoints];
    for (int64_t kh = 0; kh < 3; ++kh)
      for (int64_t kw = 0; kw < 3; ++kw) sum += kernel[kh][kw] = weight_at(w, n, kh, kw, c);
    transform_kernel(kernel, u);
    for (int64_t point = 0; point < kWinogradPoints; ++point)
      points[static_cast<size_t>(point * 4 * k_groups + c)] = static_cast<int16_t>(u[point]);
  }
  for (int64_t point = 0; point < kWinogradPoints; ++point) {
    uint8_t* at = base + point * point_bytes(h, vectors * h.lanes);
    uint32_t start = 0;
    for (int64_t g = 0; g < k_groups; ++g) {
      const int16_t* four = points.data() + (point * k_groups + g) * 4;
      std::memcpy(at + row + g * 2 * row + 2 * vector + lane, four + 2, 4);
      std::memcpy(at + row + g * 2 * row + 2 * vector + h.lanes * 4 + lane, four, 4);
      start -= static_cast<uint32_t>(four[0] * four[2]) + static_cast<uint32_t>(four[1] * four[3]);
    }
    std::memcpy(at + vector + lane, &start, 4);
  }
  return sum;
}

void put_depthwise(const PackedHeader& h, uint8_t* data, int64_t channel, int64_t kh, int64_t kw, int32_t value) {
  const int64_t full = full_block_channels(h);
  const int64_t row_groups = ceil_div(h.unique_taps / h.kernel_w, 4);
  const int64_t taps = h.repeats * h.kernel_w * row_groups;
  const bool tail = channel >= full;
  const int64_t lanes = tail ? h.tail_lanes : h.lanes;
  const int64_t first = tail ? full : channel / (4 * lanes) * (4 * lanes);
  const int64_t lane = (channel - first) / 16 * 4 + (channel - first) % 4, vector = (channel - first) % 16 / 4;
  uint8_t* block = data + first * taps * 4;
  for (int64_t repeat = 0; repeat < h.repeats; ++repeat) {
    const int64_t vector_index = ((repeat * h.kernel_w + kw) * row_groups + kh / 4) * 4 + vector;
    block[vector_index * 4 * lanes + lane * 4 + kh % 4] = static_cast<uint8_t>(part_of(value, repeat));
  }
}

// One output channel of small groups; gives the sum of its weights.
int32_t pack_words(const WeightView& w, const PackedHeader& h, uint8_t* data, int64_t n) {
  const int64_t panel_cols = static_cast<int64_t>(h.lanes) * h.panel_vectors, first = n / panel_cols * panel_cols;
  const int64_t vectors = vectors_of_panel(h.n - first, h.lanes, h.panel_vectors);
  const int64_t rows = word_rows(h.kc), per_row = row_words(h.kc), words = ceil_div(w.kernel_h, rows) * per_row;
  uint8_t* base = data + first * h.repeats * h.kernel_w * words * 4 + panel_slot(n - first, h.lanes, vectors) * 4;
  int32_t sum = 0;
  for_each_weight(w, n, n + 1, [&](int64_t, int64_t kh, int64_t kw, int64_t c, int32_t value) {
    sum += value;
    const int64_t word = kh / rows * per_row + c / 4, byte = rows > 1 ? kh % rows * h.kc + c : c % 4;
    for (int64_t repeat = 0; repeat < h.repeats; ++repeat)
      base[((repeat * h.kernel_w + kw) * words + word) * vectors * h.lanes * 4 + byte] =
          static_cast<uint8_t>(part_of(value, repeat));
  });
  return sum;
}

// Only the implicit GEMM takes something off.
int32_t offset_of(PackKind kind, const KernelTable& table) {
  const bool igemm = kind == PackKind::kDirect || kind == PackKind::kRows || kind == PackKind::kGathered;
  return igemm ? table.a_offset : 0;
}

}  // namespace

PackedHeader plan_pack(const WeightView& w, PackKind kind, const KernelTable& table) {
  int32_t lowest = 0, highest = 0;
  int64_t worst = 0, worst_column = 0;
  for (int64_t n = 0; n < w.groups * w.n; ++n) {
    const Extremes found = extremes_of(w, n);
    lowest = std::min(lowest, found.lowest);
    highest = std::max(highest, found.highest);
    if (found.sum > worst) {
      worst = found.sum;
      worst_column = n;
    }
  }
  if (worst * 255 > std::numeric_limits<int32_t>::max())
    throw std::invalid_argument("pack weight: output channel " + std::to_string(worst_column) +
                                " has sum |w| = " + std::to_string(worst) +
                                "; an int32 accumulator holds at most 2^31 - 1 = 255 * 8421504. Split the reduction or "
                                "use a larger weight scale.");
  if (kind == PackKind::kWinograd && worst * 255 * 4 > std::numeric_limits<int32_t>::max()) kind = PackKind::kDirect;
  PackedHeader h = {};
  h.magic = kPackMagic;
  h.version = kPackVersion;
  h.kind = kind;
  h.lanes = table.lanes;
  h.a_offset = offset_of(kind, table);
  const bool lanewise = kind == PackKind::kDepthwise || kind == PackKind::kSmallGroups;
  h.panel_vectors = lanewise ? 4 : table.panel_vectors;
  h.repeats = std::max<int64_t>(1, std::max(ceil_div(highest, 127), ceil_div(-lowest, 128)));
  if (kind == PackKind::kWinograd) h.repeats = 1;  // its 16 bits hold what 9 make of them
  h.kernel_w = w.kernel_w;
  if (kind == PackKind::kDepthwise) {
    h.groups = 1;
    h.n = w.groups;
    h.unique_taps = w.kernel_h * w.kernel_w;
    h.kc = 1;
    const int64_t block = 4 * static_cast<int64_t>(table.lanes), rest = h.n % block;
    h.tail_lanes = rest > 0 && rest <= 4 * table.half_lanes ? table.half_lanes : 0;
    const int64_t slots = full_block_channels(h) + 4 * h.tail_lanes;
    h.group_bytes = slots * h.repeats * w.kernel_w * ceil_div(w.kernel_h, 4) * 4;
  } else if (kind == PackKind::kSmallGroups) {
    h.groups = 1;
    h.n = w.groups * w.n;
    h.filters = w.n;
    h.unique_taps = w.kernel_h * w.kernel_w;
    h.kc = w.channels;
    // The lanes of a register have one group: the kernel broadcasts.
    if (table.splits && w.n % table.lanes == 0 && word_rows(h.kc) == 1) h.panel_vectors = 1;
    h.pieces = h.panel_vectors > 1 ? spread_pieces(h) : 0;
    const int64_t words = ceil_div(w.kernel_h, word_rows(h.kc)) * row_words(h.kc);
    h.group_bytes = ceil_div(h.n, h.lanes) * h.lanes * h.repeats * w.kernel_w * words * 4;
  } else {
    h.groups = w.groups;
    h.n = w.n;
    const int64_t positions = w.kernel_h * w.kernel_w;
    h.unique_taps = kind == PackKind::kGathered ? 1 : kind == PackKind::kRows ? w.kernel_h : positions;
    h.kc = positions / h.unique_taps * w.channels;
    const int64_t slots = ceil_div(h.n, h.lanes) * h.lanes;
    if (kind == PackKind::kWinograd) {
      h.unique_taps = kWinogradPoints;
      h.group_bytes = kWinogradPoints * point_bytes(h, slots);
    } else {
      h.group_bytes = h.unique_taps * h.repeats * ceil_div(h.kc, 4) * slots * 4;
    }
  }
  h.data_offset = ceil_div(static_cast<int64_t>(sizeof(PackedHeader)) + h.groups * h.n * 4, 64) * 64;
  h.spread_offset = h.data_offset + h.groups * h.group_bytes;
  h.total_bytes = h.spread_offset + (kind == PackKind::kSmallGroups ? spread_bytes(h) : 0);
  return h;
}

void start_pack(const PackedHeader& h, uint8_t* blob) {
  std::memset(blob, 0, static_cast<size_t>(h.total_bytes));
  std::memcpy(blob, &h, sizeof h);
  if (h.kind == PackKind::kSmallGroups) write_spread(h, blob + h.spread_offset);
}

void pack_weights(const WeightView& w, const PackedHeader& h, uint8_t* blob, int64_t n0, int64_t n1) {
  auto* sums = reinterpret_cast<int32_t*>(blob + sizeof h);
  uint8_t* data = blob + h.data_offset;
  if (h.kind != PackKind::kDepthwise) {
    const auto pack = h.kind == PackKind::kWinograd      ? pack_points
                      : h.kind == PackKind::kSmallGroups ? pack_words
                                                         : pack_column;
    for (int64_t n = n0; n < n1; ++n) sums[n] = pack(w, h, data, n);
    return;
  }
  for_each_weight(w, n0, n1, [&](int64_t n, int64_t kh, int64_t kw, int64_t, int32_t value) {
    sums[n] += value;
    put_depthwise(h, data, n, kh, kw, value);
  });
}

const PackedHeader& read_header(const uint8_t* blob, int64_t bytes, const KernelTable& table, const char* what) {
  const auto& h = *reinterpret_cast<const PackedHeader*>(blob);
  if (bytes < static_cast<int64_t>(sizeof(PackedHeader)) || h.magic != kPackMagic || h.version != kPackVersion ||
      h.total_bytes != bytes)
    throw std::invalid_argument(
        std::string(what) +
        ": `packed` is not a packed weight of this version; make it with the matching *_pack operator");
  if (h.lanes != table.lanes || h.a_offset != offset_of(h.kind, table) ||
      (h.kind == PackKind::kWinograd && !table.winograd))
    throw std::invalid_argument(std::string(what) + ": `packed` was laid out for another instruction set than " +
                                table.name + "; pack the weight again");
  return h;
}

}  // namespace zeropoint
