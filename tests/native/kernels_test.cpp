// Kernels alone, without torch: every instruction set against scalar, bit for bit, on random problems in buffers of
// exactly the size the kernels may touch. Built with the address and undefined-behaviour sanitizers for this machine
// and, without them, for AArch64 under qemu (test_native.py).
//
//   kernels_test CASES SEED
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/kernels/cpu_features.h"
#include "../../csrc/kernels/dispatch.h"
#include "../../csrc/pack/grouped_pack.h"
#include "../../csrc/pack/pack.h"

#ifdef ZEROPOINT_X86
namespace zeropoint {
extern const KernelTable kEmulatedTilesTable;  // emulated_tiles.cpp
}
#endif

using namespace zeropoint;

namespace {

std::mt19937_64 engine;

int64_t pick(std::initializer_list<int64_t> options) {
  return *(options.begin() + static_cast<std::ptrdiff_t>(engine() % options.size()));
}
bool chance(int percent) { return static_cast<int>(engine() % 100) < percent; }

// Heap memory of exactly `size` bytes, so that the address sanitizer sees one byte too many.
template <class T>
std::vector<T> random_vector(int64_t n) {
  std::vector<T> v(static_cast<size_t>(n));
  for (auto& x : v) x = static_cast<T>(engine());
  v.shrink_to_fit();
  return v;
}
std::vector<float> random_floats(int64_t n, float scale) {
  std::normal_distribution<float> normal;
  std::vector<float> v(static_cast<size_t>(n));
  for (auto& x : v) x = normal(engine) * scale;
  return v;
}

using Bytes = std::vector<uint8_t>;

std::vector<uint8_t> scratch_of(size_t size) { return std::vector<uint8_t>(size + 64); }

// Per-slot arrays of an epilogue in a table's panel order, from arrays by column.
struct Slots {
  std::vector<int32_t> init;
  std::vector<float> mult, bias;
  Slots(const PackedHeader& h, const uint8_t* blob, int32_t x_zero_point, const std::vector<float>& m,
        const std::vector<float>& b, int64_t group) {
    const bool depthwise = h.kind == PackKind::kDepthwise;
    const int64_t slots =
        depthwise ? full_block_channels(h) + 4 * h.tail_lanes : (h.n + h.lanes - 1) / h.lanes * h.lanes;
    init.assign(static_cast<size_t>(slots), 0);
    mult.assign(static_cast<size_t>(slots), 0.0f);
    bias = mult;
    int64_t slot = 0;
    for (int64_t first = 0; first < h.n;) {
      const int64_t lanes = depthwise && h.tail_lanes && first >= full_block_channels(h) ? h.tail_lanes : h.lanes;
      const int64_t vectors = depthwise ? 4 : vectors_of_panel(h.n - first, h.lanes, h.panel_vectors);
      for (int64_t v = 0; v < vectors; ++v)
        for (int64_t lane = 0; lane < lanes; ++lane, ++slot) {
          const int64_t column = first + panel_column(v, lane, vectors);
          if (column >= h.n) continue;
          const auto at = static_cast<size_t>(group * h.n + column);
          init[static_cast<size_t>(slot)] = (h.a_offset - x_zero_point) * column_sums(blob)[at];
          mult[static_cast<size_t>(slot)] = m[at];
          bias[static_cast<size_t>(slot)] = b[at];
        }
      first += vectors * lanes;
    }
  }
};

// One convolution or matrix product: what all tables get.
struct Problem {
  bool conv, depthwise, small, gathered, by_rows, winograd;
  int64_t groups, n, kc, kernel_d, kernel_h, kernel_w, rows;
  ConvGeometry g = {};
  std::vector<int8_t> weight;
  std::vector<int64_t> zero_points;
  Bytes x, pad, residual, table;
  std::vector<float> mult, bias;
  int32_t x_zero_point, zero_point;
  Epilogue::Output output;
  bool has_residual, has_table, bounded, plain;

  Problem() {
    conv = chance(60);
    depthwise = conv && chance(40);
    small = conv && !depthwise && chance(40);
    n = pick({1, 3, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 130});
    gathered = conv && !depthwise && !small && chance(30);
    by_rows = gathered && chance(50);
    kc = depthwise ? 1 : gathered ? pick({1, 2, 3, 5, 12}) : 4 * pick({1, 2, 4, 5, 16, 33});
    groups = depthwise ? n : 1;
    if (small) {
      groups = pick({2, 3, 8, 17, 32});
      n = groups * pick({1, 2, 3, 4, 5, 8, 16, 24});
      kc = pick({1, 2, 3, 4, 5, 8, 17});
    }
    kernel_d = conv && !depthwise ? pick({1, 1, 2, 3}) : 1;
    kernel_h = conv ? pick({1, 2, 3, 5, 7, 9}) : 1;
    kernel_w = conv ? pick({1, 3, 3, 5, 7}) : 1;
    rows = pick({1, 2, 5, 6, 7, 13, 49});
    winograd = conv && !depthwise && !small && !gathered && chance(40);
    if (winograd) {
      kc = pick({16, 20, 36, 68});
      kernel_d = 1;
      kernel_h = kernel_w = 3;
    }
    const int64_t channels = groups * kc;
    if (conv) {
      g.kernel_h = kernel_h;
      g.kernel_w = kernel_w;
      if (kernel_d > 1) {
        g.stride_d = pick({1, 2});
        g.dilation_d = pick({1, 2});
        g.pad_d = gathered ? 0 : pick({0, 1});
        g.in_d = (kernel_d - 1) * g.dilation_d + 1 + pick({0, 1, 3});
        g.out_d = (g.in_d + 2 * g.pad_d - (kernel_d - 1) * g.dilation_d - 1) / g.stride_d + 1;
      }
      g.stride_h = pick({1, 2});
      g.stride_w = pick({1, 1, 2, 3});
      g.dilation_h = pick({1, 1, 2});
      g.dilation_w = gathered ? 1 : pick({1, 1, 2});
      g.pad_h = pick({0, 1, kernel_h / 2});
      g.pad_w = pick({0, 1, kernel_w / 2});
      if (gathered) g.pad_h = g.pad_w = 0;
      if (winograd) g.stride_h = g.stride_w = g.dilation_h = g.dilation_w = 1;
      g.in_h = (kernel_h - 1) * g.dilation_h + 1 + pick({0, 2, 5});
      g.in_w = (kernel_w - 1) * g.dilation_w + 1 + pick({0, 3, 40});
      g.out_h = (g.in_h + 2 * g.pad_h - (kernel_h - 1) * g.dilation_h - 1) / g.stride_h + 1;
      g.out_w = (g.in_w + 2 * g.pad_w - (kernel_w - 1) * g.dilation_w - 1) / g.stride_w + 1;
      g.row_stride = g.in_w * channels;
      g.plane_stride = g.in_h * g.row_stride;
      g.image_stride = g.in_d * g.plane_stride;
      rows = g.out_d * g.out_h * g.out_w;
    }
    x = random_vector<uint8_t>((conv ? g.image_stride : rows * kc) + (gathered                 ? kPiece
                                                                      : small && channels < 16 ? 16
                                                                                               : 0));
    x_zero_point = static_cast<int32_t>(engine() % 256);
    pad.assign(static_cast<size_t>(small ? std::max<int64_t>(channels, 16) : channels),
               static_cast<uint8_t>(x_zero_point));
    weight = random_vector<int8_t>(n * kc * kernel_d * kernel_h * kernel_w);
    // Sums of products at the ends of 16 bits (split.h).
    if (chance(20)) {
      for (auto& w : weight) w = w < 0 ? -128 : 127;
      for (auto& byte : x) byte = byte < 128 ? 0 : 255;
    }
    if (chance(20)) {
      zero_points.resize(static_cast<size_t>(n));
      for (auto& z : zero_points) z = static_cast<int8_t>(engine());
    }
    mult.resize(static_cast<size_t>(n));
    // 2^-12 times the largest sum, 132 * 189 * 255^2, is below kLargestRounded.
    bounded = chance(50);
    plain = bounded && chance(60);
    for (auto& m : mult) m = std::exp2(-static_cast<float>(bounded ? 12 + engine() % 12 : engine() % 24)) * 0.7f;
    bias = random_floats(n, 30.0f);
    zero_point = plain ? 0 : static_cast<int32_t>(engine() % 256);
    output = static_cast<Epilogue::Output>(chance(70) ? 0 : 1 + engine() % 2);
    has_residual = output == Epilogue::Output::kU8 && chance(30);
    has_table = output == Epilogue::Output::kU8 && chance(30);
    residual = random_vector<uint8_t>(rows * n);
    table = random_vector<uint8_t>(256);
  }

  Bytes run(const KernelTable& t) const {
    WeightView w = {};
    w.data = weight.data();
    w.groups = groups;
    w.n = n / groups;
    w.kernel_h = kernel_d * kernel_h;
    w.kernel_w = kernel_w;
    w.channels = kc;
    w.stride_c = 1;
    w.stride_w = kc;
    w.stride_h = kc * kernel_w;
    w.stride_n = kc * kernel_w * kernel_h * kernel_d;
    w.zero_point = zero_points.empty() ? nullptr : zero_points.data();
    w.zero_point_step = 1;
    const PackedHeader h = plan_pack(w,
                                     depthwise                ? PackKind::kDepthwise
                                     : small                  ? PackKind::kSmallGroups
                                     : by_rows                ? PackKind::kRows
                                     : gathered               ? PackKind::kGathered
                                     : winograd && t.winograd ? PackKind::kWinograd
                                                              : PackKind::kDirect,
                                     t);
    Bytes blob(static_cast<size_t>(h.total_bytes));
    start_pack(h, blob.data());
    pack_weights(w, h, blob.data(), 0, w.groups * w.n);
    const Slots slots(h, blob.data(), x_zero_point, mult, bias, 0);
    Epilogue e;
    e.output = output;
    e.init = slots.init.data();
    e.mult = slots.mult.data();
    e.bias = slots.bias.data();
    e.zero_point = zero_point;
    e.lo = plain ? 0 : 3;
    e.hi = plain ? 255 : 250;
    e.bounded = bounded;
    e.plain = plain;
    if (has_residual) {
      e.residual = residual.data();
      e.residual_stride = n;
      e.sum_mult = 0.37f;
      e.residual_mult = 0.11f;
      e.residual_zero_point = 77.0f;
      e.least = static_cast<float>(e.lo - e.zero_point);
      e.most = static_cast<float>(e.hi - e.zero_point);
      e.sum_zero_point = plain ? 0 : 12;
    }
    if (has_table) e.table = table.data();
    Bytes out(static_cast<size_t>(rows * n * (output == Epilogue::Output::kU8 ? 1 : 4)));
    if (depthwise) {
      DepthwiseParams p = {};
      p.x = x.data();
      p.conv = g;
      p.channels = n;
      p.kernel_h = kernel_h;
      p.repeats = h.repeats;
      p.pad_row = pad.data();
      p.weight = blob.data() + h.data_offset;
      p.out = out.data();
      p.epilogue = e;
      auto s = scratch_of(t.depthwise_scratch(p));
      t.depthwise(p, 0, g.out_h, s.data());
    } else if (small) {
      SmallGroupsParams p = {};
      p.x = x.data();
      p.conv = g;
      p.channels = groups * kc;
      p.filters = n;
      p.group_channels = kc;
      p.group_filters = n / groups;
      p.kernel_rows = kernel_d * kernel_h;
      p.word_rows = word_rows(kc);
      p.row_words = row_words(kc);
      p.pieces = h.pieces;
      p.repeats = h.repeats;
      p.broadcasts = h.panel_vectors == 1;
      p.pad_row = pad.data();
      p.weight = blob.data() + h.data_offset;
      p.spread = blob.data() + h.spread_offset;
      p.out = out.data();
      p.epilogue = e;
      auto s = scratch_of(t.small_groups_scratch(p));
      const int64_t half = g.out_d * g.out_h / 2;
      t.small_groups(p, 0, half, s.data());
      t.small_groups(p, half, g.out_d * g.out_h, s.data());
    } else {
      IgemmParams p = {};
      p.a = x.data();
      p.a_stride = kc;
      ConvGeometry lines = g;
      if (gathered) lines.kernel_w = 1;
      p.conv = conv ? &lines : nullptr;
      p.pad_row = pad.data();
      p.unique_taps = h.unique_taps;
      p.taps = h.unique_taps * h.repeats;
      p.kc = h.kc;
      p.pieces = gathered && !by_rows && kernel_d * kernel_h > 1 ? kernel_d * kernel_h : 0;
      p.b = blob.data() + h.data_offset;
      p.n = n;
      p.out = out.data();
      p.out_stride = n;
      p.epilogue = e;
      if (h.kind == PackKind::kWinograd) {
        auto s = scratch_of(t.winograd_scratch(p));
        t.winograd(p, 0, ceil_div(g.out_h, 2) * ceil_div(g.out_w, 2), 0, t.panels(n), s.data());
      } else {
        auto s = scratch_of(t.igemm_scratch(p));
        t.igemm(p, 0, rows, 0, t.panels(n), s.data());
      }
    }
    return out;
  }
};

struct Grouped {
  int64_t m = pick({1, 2, 3, 7, 13, 50}), k = pick({1, 8, 30, 64, 100, 300}), n = pick({1, 5, 16, 17, 31, 64, 65, 130});
  int64_t group_size = pick({32, 64, 256}), bits = pick({8, 4}), terms = pick({1, 2});
  int64_t groups = (k + group_size - 1) / group_size;
  bool group_scales = chance(50) && groups > 1, zeros = chance(50);
  std::vector<float> x = random_floats(m * k, 3.0f), scale = random_floats(n * groups, 0.01f),
                     zero = random_floats(n * groups, 4.0f), bias = random_floats(n, 1.0f);
  std::vector<int8_t> weight = random_vector<int8_t>(n * k);

  Bytes run(const KernelTable& t) const {
    std::vector<int8_t> w = weight;
    if (bits == 4)
      for (auto& v : w) v = static_cast<int8_t>(v >> 4);
    const GroupedHeader h = plan_grouped(n, k, bits, group_size, group_scales, zeros, t);
    Bytes blob(static_cast<size_t>(h.total_bytes));
    pack_grouped(h, reinterpret_cast<const uint8_t*>(w.data()), false, k, 1, scale.data(), zero.data(), blob.data());
    const int64_t padded = h.k_padded();
    std::vector<int8_t> a(static_cast<size_t>(m * terms * padded));
    std::vector<float> a_scale(static_cast<size_t>(m * groups));
    std::vector<int32_t> a_sum(static_cast<size_t>(m * groups));
    for (int64_t i = 0; i < m; ++i)
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = g * group_size;
        int8_t* high = a.data() + i * terms * padded + first;
        t.quantize_group(x.data() + i * k + first, std::min(group_size, k - first),
                         std::min(group_size, padded - first), high, terms == 2 ? high + padded : nullptr,
                         &a_scale[static_cast<size_t>(i * groups + g)], &a_sum[static_cast<size_t>(i * groups + g)]);
      }
    Bytes out(static_cast<size_t>(m * n * 4));
    GroupedParams p = {};
    p.a = a.data();
    p.a_scale = a_scale.data();
    p.a_sum = a_sum.data();
    p.k_padded = padded;
    p.group_size = group_size;
    p.groups = groups;
    p.terms = static_cast<int>(terms);
    p.bits = h.bits;
    p.offset = h.offset();
    p.group_scales = group_scales;
    p.zero_points = zeros;
    p.b = blob.data() + kGroupedDataOffset;
    p.column_scale = scale.data();
    p.column_bias = bias.data();
    p.n = n;
    p.out = reinterpret_cast<float*>(out.data());
    p.out_stride = n;
    auto s = scratch_of(t.grouped_scratch(p));
    const int64_t panel = static_cast<int64_t>(t.lanes) * t.panel_vectors;
    t.grouped(p, 0, m, 0, (n + panel - 1) / panel, s.data());
    return out;
  }
};

// Passes over rows: everything else in a table.
struct Passes {
  int64_t n = pick({1, 7, 15, 16, 17, 63, 64, 65, 200, 1000});
  Bytes a = random_vector<uint8_t>(n), b = random_vector<uint8_t>(n), table = random_vector<uint8_t>(256);
  std::vector<int32_t> ints = random_vector<int32_t>(n);
  std::vector<float> x = random_floats(n, 40.0f), y = random_floats(4 * n, 2.0f), w = random_floats(n, 1.0f),
                     state = random_floats(n, 1.0f);

  Passes() {
    if (chance(30)) x[engine() % x.size()] = std::nanf("");
    if (chance(20)) x[engine() % x.size()] = 1e30f;
  }

  Bytes run(const KernelTable& t) const {
    Bytes all;
    const auto keep = [&](const void* data, int64_t bytes) {
      const auto* p = static_cast<const uint8_t*>(data);
      all.insert(all.end(), p, p + bytes);
    };
    Bytes u(static_cast<size_t>(n));
    std::vector<int32_t> i(static_cast<size_t>(n));
    std::vector<float> f(static_cast<size_t>(n));
    t.quantize_u8(x.data(), n, 0.7f, 100, 0x80, u.data());
    keep(u.data(), n);
    t.quantize_i32(x.data(), n, 1e7f, 3, i.data());
    keep(i.data(), 4 * n);
    t.dequantize_u8(a.data(), n, 0.1f, 7, 0, f.data());
    keep(f.data(), 4 * n);
    t.dequantize_i32(ints.data(), n, 0.1f, 7, f.data());
    keep(f.data(), 4 * n);
    t.requantize(ints.data(), n, 1e-7f, 9, 0, u.data());
    keep(u.data(), n);
    const auto block = int64_t{4} * t.lanes;
    std::vector<float> floats(static_cast<size_t>((n + block - 1) / block * block));  // in an order of the set's own
    t.panel_floats(b.data(), n, 0x80, 200, floats.data());
    for (const float* given : {static_cast<const float*>(nullptr), static_cast<const float*>(floats.data())})
      for (const bool bounded : {true, false}) {
        BinaryParams p = {a.data(), b.data(), u.data(), 3, 200, 77, 0.7f, 0.21f, bounded, 0, 0x80, 0x80, 2, 240, given};
        t.add(p, n);
        keep(u.data(), n);
        t.mul(p, n);
        keep(u.data(), n);
      }
    for (const int64_t planes : {1, 3, 4}) {
      const int64_t plane = n / planes;
      t.interleave_planes(a.data(), plane, 1, planes, plane, u.data());
      keep(u.data(), plane * planes);
    }
    // Windows of 2x3 on 3x5 pixels of n channels, steps of 1 and 2, one row of padding.
    Bytes map(static_cast<size_t>(15 * n)), pooled(static_cast<size_t>(8 * n));
    for (size_t k = 0; k < map.size(); ++k) map[k] = a[k % a.size()] ^ static_cast<uint8_t>(k / a.size() * 29);
    PoolParams pool = {};
    pool.x = map.data();
    pool.conv = {.in_h = 3,
                 .in_w = 5,
                 .out_h = 4,
                 .out_w = 2,
                 .kernel_w = 3,
                 .stride_h = 1,
                 .stride_w = 2,
                 .pad_h = 1,
                 .pad_w = 0,
                 .dilation_h = 1,
                 .dilation_w = 1,
                 .row_stride = 5 * n,
                 .image_stride = 15 * n};
    pool.channels = n;
    pool.kernel_h = 2;
    pool.out = pooled.data();
    pool.zero_point = 3;
    pool.out_zero_point = 77;
    pool.in_xor = pool.out_xor = 0x80;
    pool.lo = 2;
    pool.hi = 240;
    t.max_pool(pool, 0, 4);
    keep(pooled.data(), 8 * n);
    t.avg_pool(pool, 0, 4);
    keep(pooled.data(), 8 * n);
    t.lookup(a.data(), n, table.data(), u.data());
    keep(u.data(), n);
    float range[2];
    t.row_range(x.data(), n, range, range + 1);
    keep(range, 8);
    int64_t sums[2];
    t.row_sums(a.data(), n, 0x80, sums, sums + 1);
    keep(sums, 16);
    const NormalizeParams norm = {100, 20, 0, 0x80, 0, 255};
    t.normalize_row(norm, a.data(), n, 1.5f, 0.02f, w.data(), x.data(), false, u.data());
    keep(u.data(), n);
    std::vector<float> sum(static_cast<size_t>(n));
    for (int kind = 0; kind < 8; ++kind) {
      const bool floats = kind & 2, integers = !floats || kind & 4;
      const NormParams p = {.n = n,
                            .weight = kind > 1 ? w.data() : nullptr,
                            .bias = kind % 3 ? state.data() : nullptr,
                            .eps = 1e-5f,
                            .centered = kind != 2 && kind != 5,
                            .inv_scale = 20.0f,
                            .zero_point = 100,
                            .out_xor = static_cast<uint8_t>(kind & 4 ? 0x80 : 0)};
      t.norm_row(p, x.data(), kind & 1 ? state.data() : nullptr, sum.data(), floats ? f.data() : nullptr,
                 integers ? u.data() : nullptr);
      if (floats) keep(f.data(), 4 * n);
      if (integers) keep(u.data(), n);
      if (kind & 1) keep(sum.data(), 4 * n);
    }
    for (const bool four_bits : {false, true}) {
      t.embedding_row(a.data(), n, four_bits, 0.1f, 3.5f, f.data());
      keep(f.data(), 4 * n);
      const int64_t rows[] = {0, 1, 0}, width = four_bits ? (n + 1) / 2 : n;
      Bytes table(static_cast<size_t>(2 * width));
      std::copy_n(a.data(), width, table.data());
      std::copy_n(b.data(), width, table.data() + width);
      const float scale[] = {0.1f, -0.3f}, zero_point[] = {3.5f, 200.25f}, weights[] = {0.7f, -1.1f, 0.3f};
      BagParams bag = {table.data(), width, n, four_bits, false, scale, zero_point, rows, weights, 3, f.data()};
      t.embedding_bag(bag);
      keep(f.data(), 4 * n);
      bag.maximum = true;
      t.embedding_bag(bag);
      keep(f.data(), 4 * n);
    }
    t.silu_mul(x.data(), w.data(), n, f.data());
    keep(f.data(), 4 * n);
    t.rotate_row(x.data(), w.data(), state.data(), n - n % 2, f.data());
    keep(f.data(), 4 * (n - n % 2));
    // Two rows of keys in the first piece, one in the second; values of as many features, ends of memory included.
    std::vector<float> scores(static_cast<size_t>((3 + t.lanes - 1) / t.lanes * t.lanes)), mask(scores.size(), kMasked);
    mask[0] = 0.5f;
    mask[2] = -1.0f;
    for (const float* given : {static_cast<const float*>(nullptr), static_cast<const float*>(mask.data())}) {
      AttendParams attend = {};
      attend.pieces[0] = {x.data(), w.data(), 0, 0, 2};
      attend.pieces[1] = {state.data(), y.data(), n, n, 1};
      attend.d = attend.e = n;
      attend.query = w.data();
      attend.factor = 0.01f;
      attend.mask = given;
      attend.scores = scores.data();
      attend.out = f.data();
      t.attend_row(attend);
      keep(f.data(), 4 * n);
    }
    std::vector<int32_t> powers(511);
    for (int d = 0; d < 256; ++d) powers[static_cast<size_t>(255 - d)] = (1 << 23) >> (d / 8);
    const SoftmaxParams soft = {powers.data(), 1.0 / 256, 0, 0, 0, 0, 255};
    Bytes by(256);
    t.softmax_table(soft, a.data(), n, by.data());
    keep(by.data(), 256);
    for (int kind = 0; kind < 4; ++kind) {
      std::vector<float> h = state, c = w;
      const std::vector<float> z(static_cast<size_t>(4 * n), 0.25f);
      if (kind == 0) t.lstm_gates(y.data(), z.data(), n, n, h.data(), c.data());
      if (kind == 1) t.gru_gates(y.data(), z.data(), n, n, h.data());
      if (kind > 1) t.rnn_gates(y.data(), z.data(), n, kind == 2, h.data());
      keep(h.data(), 4 * n);
      keep(c.data(), 4 * n);
    }
    return all;
  }
};

// AVX-VNNI is built in the encoding of AVX-512VL here (CMakeLists.txt).
[[maybe_unused]] bool runs_here(const Isa& isa) {
  return std::strcmp(isa.table->name, "avxvnni") == 0 ? cpu_features().avx512vnni : isa.available;
}

int failures = 0;
uint64_t checksum = 1469598103934665603ULL;  // FNV-1a over all expected bytes: the same on every architecture

// What can be run here beside scalar: this CPU's instruction sets, and those that are emulated on it.
std::vector<const KernelTable*> others() {
#ifdef EMULATE
  static const KernelTable vbmi = [] {
    KernelTable table = kAvx512VnniTable;
    table.name = "avx512vbmi";
    table.lookup = lookup_avx512vbmi;
    return table;
  }();
  return {&kAvxVnniTable, &vbmi, &kEmulatedTilesTable};
#else
  std::vector<const KernelTable*> found;
  for (int i = 1; i < isa_count(); ++i)
    if (runs_here(isa_at(i))) found.push_back(isa_at(i).table);
#ifdef ZEROPOINT_X86
  if (cpu_features().avx512vnni) found.push_back(&kEmulatedTilesTable);
#endif
  return found;
#endif
}

template <class P>
void compare(const P& problem, const char* name, long index) {
  const Bytes expected = problem.run(*isa_at(0).table);
  for (const uint8_t byte : expected) checksum = (checksum ^ byte) * 1099511628211ULL;
  for (const KernelTable* table : others())
    if (problem.run(*table) != expected) {
      std::printf("%s %ld: %s differs from scalar\n", name, index, table->name);
      ++failures;
    }
}

}  // namespace

int main(int argc, char** argv) {
  const long cases = argc > 1 ? std::atol(argv[1]) : 300;
  const unsigned long seed = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : std::random_device{}();
  engine.seed(seed);
  for (long i = 0; i < cases; ++i) {
    compare(Problem(), "product", i);
    compare(Grouped(), "grouped", i);
    compare(Passes(), "passes", i);
  }
  std::printf("seed %lu, %ld cases, instruction sets:", seed, cases);
  std::printf(" scalar");
  for (const KernelTable* table : others()) std::printf(" %s", table->name);
  std::printf(", checksum %016llx, %d failures\n", static_cast<unsigned long long>(checksum), failures);
  return failures != 0;
}
