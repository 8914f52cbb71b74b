// Convolution in groups of few channels or filters on NHWC and NDHWC, written once over the vocabulary `V`.
//
// A lane takes one output channel, as in depthwise.h, and a dot product four bytes of its group: four channels of a
// pixel, or so many rows of one or two channels. For a vector of output channels and a stretch of pixels the kernel
// spreads the input first: a word per four bytes and lane, in a buffer in L1 that all columns of the kernel read, and
// the rows of it for several output rows. The packed weight tells which byte goes where (pack/spread.h). A matrix
// product per group would multiply a register of which a group fills a part.
//
// Where all lanes of a register have one group, the words serve all filters of it. Sets that split bytes before they
// multiply would do so for every tap in a product per group.
#pragma once
#include "depthwise.h"
#include "split.h"

namespace zeropoint {
namespace {

constexpr int64_t kMostSharedRows = 4, kMostBlocks = 4;
constexpr int64_t kSpreadBytes = 26624, kSpreadSums = 14336;  // of the buffer, and of sums: both stay in L1

// How much of the output shares a buffer: what spreads the fewest bytes for a pixel.
template <class V>
struct SpreadShape {
  int64_t rows, pixels;    // of the output; whole blocks of pixels
  int64_t words, columns;  // of the buffer
  int64_t buffer_bytes;
  int64_t kernel_words, row_step;  // words of a kernel's column; those from an output row to the next
  int64_t lines;  // rows of the input that the buffer has, and three more: of a word that is past the kernel in part
  int64_t line_bytes;

  explicit SpreadShape(const SmallGroupsParams& p) {
    const ConvGeometry& g = p.conv;
    const int64_t block = depthwise_block_pixels(g), blocks = ceil_div(g.out_w, block);
    kernel_words = ceil_div(p.kernel_rows, p.word_rows) * p.row_words;
    row_step = g.stride_h * p.row_words;
    const bool shares = p.word_rows == 1 && p.kernel_rows == g.kernel_h && g.dilation_h == 1;
    double least = 0;
    for (int64_t r = 1; r <= (shares ? kMostSharedRows : 1) && r <= g.out_h; ++r)
      for (int64_t b = 1; b <= kMostBlocks && b <= blocks; ++b) {
        const int64_t w = kernel_words + (r - 1) * row_step, c = buffer_columns(g, b * block);
        const bool fits = w * c * V::kDwInputBytes <= kSpreadBytes && r * b * block * 16 * V::kLanes <= kSpreadSums;
        if (r * b > 1 && !fits) continue;
        const double cost = static_cast<double>(w * c) / static_cast<double>(r * b);
        if (r * b > 1 && cost >= least) continue;
        least = cost;
        rows = r;
        pixels = b * block;
        words = w;
        columns = c;
      }
    buffer_bytes = words * columns * V::kDwInputBytes;
    lines = p.kernel_rows + (rows - 1) * g.stride_h + 3;
    line_bytes = ceil_div(lines * static_cast<int64_t>(sizeof(void*)), 64) * 64;
  }
};

template <class V>
size_t small_groups_scratch(const SmallGroupsParams& p) {
  const SpreadShape<V> shape(p);
  return static_cast<size_t>(shape.line_bytes + shape.buffer_bytes + shape.rows * shape.pixels * 16 * V::kLanes);
}

// One word of all columns from the rows its pieces come from (null: padding). `Run`: a piece is one run of bytes.
template <class V, int Pieces, bool Run>
void spread_word(const SmallGroupsParams& p, const uint8_t* const (&rows)[4], const uint8_t* spread, int64_t w0,
                 int64_t columns, uint8_t* out) {
  typename V::U8 which[Pieces];
  int32_t where[Pieces][V::kLanes / 4];
#pragma GCC unroll 4
  for (int i = 0; i < Pieces; ++i) {
    const uint8_t* piece = spread + i * spread_piece_bytes(V::kLanes);
    __builtin_memcpy(where[i], piece, V::kLanes);
    which[i] = V::template load_u8<4>(piece + V::kLanes, 4 * V::kLanes);
  }
  const InsideColumns inside(p.conv, w0, columns);
  const uint8_t* next[Pieces];
  int64_t step[Pieces];
  for (int i = 0; i < Pieces; ++i) {
    step[i] = rows[i] ? p.channels : 0;
    next[i] = rows[i] ? rows[i] + (w0 + inside.first) * p.channels : p.pad_row;
  }
  const auto put = [&](const auto& from) __attribute__((always_inline)) {
    typename V::U8 bytes = V::template spread<Run>(from(0), where[0], which[0]);
#pragma GCC unroll 4
    for (int i = 1; i < Pieces; ++i) bytes = V::or_u8(bytes, V::template spread<Run>(from(i), where[i], which[i]));
    V::store_dw_input(out, V::words(bytes));
    out += V::kDwInputBytes;
  };
  const auto padding = [&](int) { return p.pad_row; };
  for (int64_t c = 0; c < inside.first; ++c) put(padding);
  for (int64_t c = inside.first; c < inside.last; ++c) {
    put([&](int i) { return next[i]; });
#pragma GCC unroll 4
    for (int i = 0; i < Pieces; ++i) next[i] += step[i];
  }
  for (int64_t c = inside.last; c < columns; ++c) put(padding);
}

template <class V>
void spread_word(const SmallGroupsParams& p, const uint8_t* const (&rows)[4], const uint8_t* spread, int64_t w0,
                 int64_t columns, uint8_t* out) {
  bool run = true;
  for (int64_t i = 0; i < p.pieces; ++i) {
    int32_t where[V::kLanes / 4];
    __builtin_memcpy(where, spread + i * spread_piece_bytes(V::kLanes), V::kLanes);
    for (int k = 1; k < V::kLanes / 4; ++k) run = run && where[k] == where[0] + 16 * k;
  }
  const auto with = [&](auto pieces) {
    constexpr int kPieces = decltype(pieces)::value;
    if (run)
      spread_word<V, kPieces, true>(p, rows, spread, w0, columns, out);
    else
      spread_word<V, kPieces, false>(p, rows, spread, w0, columns, out);
  };
  if (p.pieces == 1)
    with(std::integral_constant<int, 1>{});
  else if (p.pieces == 2)
    with(std::integral_constant<int, 2>{});
  else
    with(std::integral_constant<int, 4>{});
}

// Words of all columns, each in all lanes, from a channel on; `bytes` of them if they are a part of one.
template <class V, int Words>
void broadcast_words(const SmallGroupsParams& p, const uint8_t* row, int64_t channel, size_t bytes, int64_t w0,
                     int64_t columns, uint8_t* out, int64_t word_bytes) {
  const auto put = [&](int64_t c, const uint8_t* from) __attribute__((always_inline)) {
    uint8_t part[4] = {};
    if (Words == 1 && bytes < 4) {
      __builtin_memcpy(part, from, bytes);
      from = part;
    }
    V::template store_words<Words>(from, out + c * V::kDwInputBytes, word_bytes);
  };
  const InsideColumns inside(p.conv, w0, columns);
  for (int64_t c = 0; c < inside.first; ++c) put(c, p.pad_row + channel);
  const int64_t step = row ? p.channels : 0;
  const uint8_t* from = (row ? row + (w0 + inside.first) * step : p.pad_row) + channel;
  for (int64_t c = inside.first; c < inside.last; ++c, from += step) put(c, from);
  for (int64_t c = inside.last; c < columns; ++c) put(c, p.pad_row + channel);
}

// A stretch of `rows` output rows of a panel of NV vectors from `channel` on, `count` of them real; `first` is the
// first pixel of the first row. `lines`: the input's rows that the buffer has, and three more.
template <class V, int NV>
void small_groups_panel(const SmallGroupsParams& p, const SpreadShape<V>& shape, const uint8_t* const* lines,
                        int64_t rows, int64_t w0, int64_t first, int64_t pixels, int64_t channel, int count,
                        uint8_t* scratch) {
  const ConvGeometry& g = p.conv;
  const Epilogue& e = p.epilogue;
  const int64_t block = depthwise_block_pixels(g), whole = ceil_div(pixels, block) * block;
  const int64_t columns = buffer_columns(g, whole), words = shape.kernel_words + (rows - 1) * shape.row_step;
  const uint8_t* weight = p.weight + channel * p.repeats * g.kernel_w * shape.kernel_words * 4;
  const uint8_t* spread = p.spread + p.row_words * p.pieces * spread_piece_bytes(channel);
  auto* sums = reinterpret_cast<int32_t*>(scratch + shape.buffer_bytes);
  const LaneSums layout = {columns * V::kDwInputBytes, p.repeats, shape.kernel_words, NV,
                           e.output == Epilogue::Output::kU8};
  for (int v = 0; v < NV; ++v) {
    for (int64_t word = 0; word < words; ++word) {
      const uint8_t* from[4];
      for (int i = 0; i < 4; ++i)
        from[i] = lines[p.word_rows > 1 ? word * p.word_rows + (i < p.word_rows ? i : 0) : word / p.row_words];
      spread_word<V>(p, from, spread + (word % p.row_words * NV + v) * p.pieces * spread_piece_bytes(V::kLanes), w0,
                     columns, scratch + word * layout.word_bytes);
    }
    for (int64_t r = 0; r < rows; ++r)
      lane_sums<V, 1>(g, e, layout, scratch + r * shape.row_step * layout.word_bytes, weight + v * V::kDwBytes, whole,
                      channel + v * V::kLanes, sums + (r * whole * NV + v) * V::kLanes);
  }
  for (int64_t r = 0; r < rows; ++r)
    store_pixels<V, NV>(e, p.out, p.filters, sums + r * whole * NV * V::kLanes, first + r * g.out_w, pixels, channel,
                        count);
}

// A group's filters over a stretch of `rows` output rows; `first` is the first pixel of the first row.
template <class V>
void broadcast_group(const SmallGroupsParams& p, const SpreadShape<V>& shape, const uint8_t* const* lines, int64_t rows,
                     int64_t w0, int64_t first, int64_t pixels, int64_t group, uint8_t* scratch) {
  const ConvGeometry& g = p.conv;
  const int64_t block = depthwise_block_pixels(g), whole = ceil_div(pixels, block) * block;
  const int64_t columns = buffer_columns(g, whole), words = shape.kernel_words + (rows - 1) * shape.row_step;
  const LaneSums layout = {columns * V::kDwInputBytes, p.repeats, shape.kernel_words, 1, false};
  uint8_t* out = scratch;
  for (int64_t line = 0; line < words / p.row_words; ++line)
    for (int64_t c = 0; c < p.group_channels;) {
      const auto run = [&](auto count, int64_t bytes) {
        constexpr int kWords = decltype(count)::value;
        broadcast_words<V, kWords>(p, lines[line], group * p.group_channels + c, static_cast<size_t>(bytes), w0,
                                   columns, out, layout.word_bytes);
        c += bytes;
        out += kWords * layout.word_bytes;
      };
      const int64_t left = p.group_channels - c;
      if (left >= 16)
        run(std::integral_constant<int, 4>{}, 16);
      else if (left >= 8)
        run(std::integral_constant<int, 2>{}, 8);
      else
        run(std::integral_constant<int, 1>{}, left < 4 ? left : 4);
    }
  auto* sums = reinterpret_cast<int32_t*>(scratch + shape.buffer_bytes);
  IgemmParams output = {};
  output.n = p.filters;
  output.out = p.out;
  output.out_stride = p.filters;
  output.epilogue = p.epilogue;
  for (int64_t channel = group * p.group_filters; channel < (group + 1) * p.group_filters; channel += V::kLanes) {
    const uint8_t* weight = p.weight + channel * p.repeats * g.kernel_w * shape.kernel_words * 4;
    for (int64_t r = 0; r < rows; ++r) {
      lane_sums<V, 1>(g, p.epilogue, layout, scratch + r * shape.row_step * layout.word_bytes, weight, whole, channel,
                      sums);
      finish_panel<V, 1>(output, first + r * g.out_w, pixels, sums, channel);
    }
  }
}

// Rows are (image, output plane, output row) triples.
template <class V>
void small_groups(const SmallGroupsParams& p, int64_t row0, int64_t row1, uint8_t* scratch) {
  const ConvGeometry& g = p.conv;
  const SpreadShape<V> shape(p);
  const int64_t panel = 4 * V::kLanes;
  const auto** lines = reinterpret_cast<const uint8_t**>(scratch);
  scratch += shape.line_bytes;
  int64_t rows;
  for (int64_t row = row0; row < row1; row += rows) {
    const int64_t oh = row % g.out_h, od = row / g.out_h % g.out_d;
    rows = shape.rows < row1 - row ? shape.rows : row1 - row;
    if (rows > g.out_h - oh) rows = g.out_h - oh;
    const uint8_t* image = p.x + row / (g.out_h * g.out_d) * g.image_stride;
    for (int64_t i = 0; i < shape.lines; ++i) {
      // Rows past a plane's kernel are those of the output rows below, in the only plane.
      const int64_t plane = p.kernel_rows > g.kernel_h ? i / g.kernel_h : 0, line = i - plane * g.kernel_h;
      const int64_t d = od * g.stride_d - g.pad_d + plane * g.dilation_d;
      const int64_t h = oh * g.stride_h - g.pad_h + line * g.dilation_h;
      const bool inside = d >= 0 && d < g.in_d && h >= 0 && h < g.in_h && i < p.kernel_rows + (rows - 1) * g.stride_h;
      lines[i] = inside ? image + d * g.plane_stride + h * g.row_stride : nullptr;
    }
    for (int64_t ow = 0; ow < g.out_w; ow += shape.pixels) {
      const int64_t pixels = g.out_w - ow < shape.pixels ? g.out_w - ow : shape.pixels;
      const int64_t first = row * g.out_w + ow, w0 = ow * g.stride_w - g.pad_w;
      if constexpr (V::kSplits)
        if (p.broadcasts) {
          for (int64_t group = 0; group < p.filters / p.group_filters; ++group)
            broadcast_group<V>(p, shape, lines, rows, w0, first, pixels, group, scratch);
          continue;
        }
      for (int64_t channel = 0; channel < p.filters; channel += panel) {
        const int64_t left = p.filters - channel;
        const int count = static_cast<int>(left < panel ? left : panel);
        const auto run = [&](auto vectors) {
          small_groups_panel<V, decltype(vectors)::value>(p, shape, lines, rows, w0, first, pixels, channel, count,
                                                          scratch);
        };
        if (count > 3 * V::kLanes)
          run(std::integral_constant<int, 4>{});
        else if (count > 2 * V::kLanes)
          run(std::integral_constant<int, 3>{});
        else if (count > V::kLanes)
          run(std::integral_constant<int, 2>{});
        else
          run(std::integral_constant<int, 1>{});
      }
    }
  }
}

}  // namespace
}  // namespace zeropoint
