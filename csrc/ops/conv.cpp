// zeropoint::conv2d, conv3d and their packing: picks depthwise, few channels or direct implicit GEMM.
#include <algorithm>
#include <cstring>

#include "../engine/operators.h"
#include "gemm.h"
#include "threads.h"

namespace zeropoint {
namespace {

// Below this many channels a tap's row of A is too short to fill a dot product. The taps of a kernel row are neighbours
// in NHWC memory and become one; where even those leave much of their last dot product empty, the rows of all taps of
// an output pixel are put side by side.
constexpr int64_t kFewChannels = 16;

// Transforming a tile takes as long as a few output channels of it, and fewer input channels are over before.
constexpr int64_t kWinogradChannels = 32;

// Groups of so many outputs are small: a matrix product of one would fill no register, or split A (split.h) for few
// columns. Of a 1x1 kernel what is spread is used once: from a register on, splitting is less (Zen 3, 384 to 96
// channels in 8 groups at 28x28: 201 us, spread 328; but 64 in 16 at 56x56 170, by products 583).
bool small_groups(int64_t groups, int64_t filters, int64_t taps) {
  return groups > 1 && (kernels().splits && taps > 1 ? filters <= 24 : filters < kernels().lanes);
}

// `rows` of the kernel, of `row` positions each; `channels` of a group. `stride` empty: any.
PackKind conv_kind(int64_t dims, int64_t groups, int64_t out_channels, int64_t rows, int64_t row, int64_t channels,
                   const std::vector<int64_t>& dilation, const std::vector<int64_t>& stride) {
  const int64_t dilation_w = dilation.back();
  const auto ones = [](const std::vector<int64_t>& v) { return v == std::vector<int64_t>{1, 1}; };
  if (dims == 2 && groups > 1 && channels == 1 && out_channels == groups) return PackKind::kDepthwise;
  if (small_groups(groups, out_channels / groups, rows * row)) return PackKind::kSmallGroups;
  if (kernels().winograd && groups == 1 && rows == 3 && row == 3 && ones(dilation) && ones(stride) &&
      channels >= kWinogradChannels && out_channels >= kWinogradChannels)
    return PackKind::kWinograd;
  if (groups > 1 || channels >= kFewChannels || dilation_w > 1) return PackKind::kDirect;
  const int64_t apart = rows * ceil_div(row * channels, 4), together = ceil_div(rows * row * channels, 4);
  const bool waste = kernels().splits ? apart > together : 20 * apart > 27 * together;
  return waste ? PackKind::kGathered : PackKind::kRows;
}

Tensor pack(const std::string& what, int64_t dims, Tensor weight, const OptionalTensor& zero_point,
            const std::vector<int64_t>& dilation, int64_t groups, const std::vector<int64_t>& stride) {
  ZP_REQUIRE(weight.dim() == dims + 2 && weight.scalar_type() == ScalarType::Char,
             what + ": weight must be int8 [out_channels, in_channels / groups, " +
                 (dims == 3 ? "kernel_d, kernel_h, kernel_w]" : "kernel_h, kernel_w]"));
  ZP_REQUIRE(weight.numel() > 0, what + ": weight must not be empty");
  ZP_REQUIRE(groups >= 1 && weight.size(0) % groups == 0, what + ": out_channels " + std::to_string(weight.size(0)) +
                                                              " is not divisible by groups " + std::to_string(groups));
  ZP_REQUIRE(static_cast<int64_t>(dilation.size()) == dims,
             what + ": dilation needs " + std::to_string(dims) + " values");
  ZP_REQUIRE(stride.empty() || static_cast<int64_t>(stride.size()) == dims,
             what + ": stride needs " + std::to_string(dims) + " values, or none for any stride");
  // Planes of a contiguous kernel are one below the other: rows of one plane.
  if (dims == 3) weight = to_contiguous(weight);
  WeightView v = {};
  v.data = static_cast<const int8_t*>(weight.data_ptr());
  v.groups = groups;
  v.n = weight.size(0) / groups;
  v.channels = weight.size(1);
  v.kernel_h = dims == 3 ? weight.size(2) * weight.size(3) : weight.size(2);
  v.kernel_w = weight.size(dims + 1);
  v.stride_n = weight.stride(0);
  v.stride_c = weight.stride(1);
  v.stride_h = weight.stride(dims);
  v.stride_w = weight.stride(dims + 1);
  if (zero_point) {
    ZP_REQUIRE(zero_point->scalar_type() == ScalarType::Long && zero_point->is_contiguous() &&
                   (zero_point->numel() == 1 || zero_point->numel() == weight.size(0)),
               what + ": weight_zero_point must be contiguous int64 with 1 or out_channels values");
    v.zero_point = static_cast<const int64_t*>(zero_point->data_ptr());
    v.zero_point_step = zero_point->numel() == 1 ? 0 : 1;
  }
  const PackKind kind = conv_kind(dims, groups, weight.size(0), v.kernel_h, v.kernel_w, v.channels, dilation, stride);
  const PackedHeader header = plan_pack(v, kind, kernels());
  Tensor blob = empty_packed(header.total_bytes);
  start_pack(header, bytes(blob));
  parallel(v.groups * v.n, v.channels * v.kernel_h * v.kernel_w,
           [&](int64_t begin, int64_t end) { pack_weights(v, header, bytes(blob), begin, end); });
  return blob;
}

Tensor conv2d_pack(Tensor weight, OptionalTensor zero_point, std::vector<int64_t> dilation, int64_t groups,
                   std::vector<int64_t> stride) {
  return pack("conv2d_pack", 2, weight, zero_point, dilation, groups, stride);
}

Tensor conv3d_pack(Tensor weight, OptionalTensor zero_point, std::vector<int64_t> dilation, int64_t groups,
                   std::vector<int64_t> stride) {
  return pack("conv3d_pack", 3, weight, zero_point, dilation, groups, stride);
}

// Copies x, in any layout and signedness, to NDHWC with a border of zero points, so that the kernel never
// meets an edge and may read past a pixel's end.
const uint8_t* padded_copy(const Tensor& x, uint8_t zero_point, ConvGeometry& g) {
  const int64_t batch = x.size(0), channels = x.size(1);
  const int64_t depth = g.in_d + 2 * g.pad_d, height = g.in_h + 2 * g.pad_h, width = g.in_w + 2 * g.pad_w;
  std::vector<int64_t> stride = strides_of(x);
  if (x.dim() == 4) stride.insert(stride.begin() + 2, 0);
  const uint8_t flip = sign_flip(x.scalar_type());
  const uint8_t* source = bytes(x);
  uint8_t* copy = scratch(Scratch::kInput, static_cast<size_t>(batch * depth * height * width * channels) + 64);
  const ConvGeometry from = g;
  const KernelTable& kernel = kernels();
  parallel(batch * depth * height, width * channels, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t h = row % height - from.pad_h, d = row / height % depth - from.pad_d;
      uint8_t* out = copy + row * width * channels;
      const bool inside = h >= 0 && h < from.in_h && d >= 0 && d < from.in_d;
      std::fill_n(out, inside ? from.pad_w * channels : width * channels, zero_point);
      if (!inside) continue;
      const uint8_t* in = source + row / (height * depth) * stride[0] + d * stride[2] + h * stride[3];
      out += from.pad_w * channels;
      if (stride[1] == 1 && stride[4] == channels)
        std::memcpy(out, in, static_cast<size_t>(from.in_w * channels));
      else
        kernel.interleave_planes(in, stride[1], stride[4], channels, from.in_w, out);
      if (flip)
        for (int64_t i = 0; i < from.in_w * channels; ++i) out[i] ^= flip;
      std::fill_n(out + from.in_w * channels, from.pad_w * channels, zero_point);
    }
  });
  g.in_d = depth;
  g.in_h = height;
  g.in_w = width;
  g.pad_d = g.pad_h = g.pad_w = 0;
  g.row_stride = width * channels;
  g.plane_stride = height * g.row_stride;
  g.image_stride = depth * g.plane_stride;
  return copy;
}

int64_t output_extent(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  const int64_t span = in + 2 * pad - dilation * (kernel - 1) - 1;
  return span < 0 ? 0 : span / stride + 1;
}

// Output pixels of an image grouped by the taps that fall inside it, cut into register tiles.
struct PixelOrder {
  std::vector<int32_t> order, tiles;

  // Classes of output positions along one dimension by their first and last tap inside; all of them inside is class 0.
  static std::vector<int32_t> classes(int64_t out, int64_t in, int64_t kernel, int64_t stride, int64_t pad,
                                      int64_t dilation, int32_t& count) {
    std::vector<std::pair<int64_t, int64_t>> known = {{0, kernel}};
    std::vector<int32_t> found;
    for (int64_t o = 0; o < out; ++o) {
      const int64_t start = o * stride - pad;
      int64_t first = 0, last = kernel;
      while (first < kernel && start + first * dilation < 0) ++first;
      while (last > first && start + (last - 1) * dilation >= in) --last;
      const std::pair<int64_t, int64_t> own{first, last};
      const auto at = std::find(known.begin(), known.end(), own);
      found.push_back(static_cast<int32_t>(at - known.begin()));
      if (at == known.end()) known.push_back(own);
    }
    count = static_cast<int32_t>(known.size());
    return found;
  }

  void fill(const ConvGeometry& g, int64_t kernel_h) {
    int32_t rows, columns;
    const auto by_row = classes(g.out_h, g.in_h, kernel_h, g.stride_h, g.pad_h, g.dilation_h, rows);
    const auto by_column = classes(g.out_w, g.in_w, g.kernel_w, g.stride_w, g.pad_w, g.dilation_w, columns);
    constexpr size_t kFew = 3;  // smaller groups are not worth a tile: with the pixels that have all taps
    std::vector<std::vector<int32_t>> groups(static_cast<size_t>(rows * columns));
    for (int64_t h = 0; h < g.out_h; ++h)
      for (int64_t w = 0; w < g.out_w; ++w)
        groups[static_cast<size_t>(by_row[static_cast<size_t>(h)] * columns + by_column[static_cast<size_t>(w)])]
            .push_back(static_cast<int32_t>(h * g.out_w + w));
    for (size_t i = 1; i < groups.size(); ++i)
      if (groups[i].size() < kFew) {
        groups[0].insert(groups[0].end(), groups[i].begin(), groups[i].end());
        groups[i].clear();
      }
    order.clear();
    tiles.assign(1, 0);
    for (const auto& group : groups) {
      if (group.empty()) continue;
      order.insert(order.end(), group.begin(), group.end());
      const auto size = static_cast<int64_t>(group.size()), count = ceil_div(size, kMaxRows);
      for (int64_t i = 0; i < count; ++i)
        tiles.push_back(tiles.back() + static_cast<int32_t>(size / count + (i < size % count ? 1 : 0)));
    }
  }
};

// Above this many pixels the padded ones are few.
constexpr int64_t kOrderedPixels = 1024;

// Sizes and strides of a call of `dims` spatial dimensions.
ConvGeometry geometry(const std::string& what, int64_t dims, const Tensor& x, const Tensor& weight,
                      std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  const auto is = [&](const std::vector<int64_t>& values, int64_t least) {
    return static_cast<int64_t>(values.size()) == dims &&
           std::all_of(values.begin(), values.end(), [&](int64_t v) { return v >= least; });
  };
  ZP_REQUIRE(is(stride, 1) && is(dilation, 1) && is(padding, 0),
             what + ": stride, padding and dilation need " + std::to_string(dims) +
                 " values each; stride and dilation must be positive, padding not negative");
  const auto shape = sizes_of(x), kernel = sizes_of(weight);
  std::vector<int64_t> in(shape.begin() + 2, shape.end()), taps(kernel.begin() + 2, kernel.end());
  if (dims == 2) {  // one plane
    for (auto* values : {&in, &taps, &stride, &dilation}) values->insert(values->begin(), 1);
    padding.insert(padding.begin(), 0);
  }
  int64_t out[3];
  for (size_t i = 0; i < 3; ++i) out[i] = output_extent(in[i], taps[i], stride[i], padding[i], dilation[i]);
  ZP_REQUIRE(out[0] > 0 && out[1] > 0 && out[2] > 0, what + ": the kernel does not fit into the padded input of " +
                                                         std::to_string(in[0]) + "x" + std::to_string(in[1]) + "x" +
                                                         std::to_string(in[2]));
  // Of a copy with its border; padding may be given as any number.
  double padded = static_cast<double>(x.size(0)) * static_cast<double>(x.size(1));
  for (size_t i = 0; i < 3; ++i) padded *= static_cast<double>(in[i]) + 2.0 * static_cast<double>(padding[i]);
  ZP_REQUIRE(padded < 8589934592.0, what + ": the padded input would have 2^33 bytes or more");
  ConvGeometry g = {};
  g.in_d = in[0], g.in_h = in[1], g.in_w = in[2];
  g.out_d = out[0], g.out_h = out[1], g.out_w = out[2];
  g.kernel_h = taps[1], g.kernel_w = taps[2];
  g.stride_d = stride[0], g.stride_h = stride[1], g.stride_w = stride[2];
  g.pad_d = padding[0], g.pad_h = padding[1], g.pad_w = padding[2];
  g.dilation_d = dilation[0], g.dilation_h = dilation[1], g.dilation_w = dilation[2];
  g.row_stride = g.in_w * x.size(1);
  g.plane_stride = g.in_h * g.row_stride;
  g.image_stride = g.in_d * g.plane_stride;
  return g;
}

// The rows of an output of kernels with a lane per channel; they share work among up to four.
template <class Params>
void run_rows(Params& p, int64_t rows, int64_t row_bytes, int64_t cost, size_t scratch_bytes,
              void (*run)(const Params&, int64_t, int64_t, uint8_t*)) {
  const TableAfter after(p.epilogue, p.out);
  const int64_t step = after.table ? std::max<int64_t>(4, 24576 / row_bytes) : rows;
  parallel(rows, row_bytes * std::max<int64_t>(1, cost), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row += step) {
      const int64_t last = std::min(end, row + step);
      run(p, row, last, scratch(Scratch::kWorker, scratch_bytes));
      after(kernels(), row * row_bytes, last * row_bytes);
    }
  });
}

Tensor convolve(const char* name, int64_t dims, Tensor x, const Tensor& weight, const Tensor& packed,
                const Tensor& w_scale, const OptionalTensor& bias, const std::vector<int64_t>& stride,
                const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
                const OutputSpec& spec, TailSpec tail) {
  const std::string what = name;
  const KernelTable& kernel = kernels();
  ZP_REQUIRE(is_byte(x) && x.dim() == dims + 2,
             what + ": x must be uint8 or int8 " + (dims == 3 ? "[N, C, D, H, W]" : "[N, C, H, W]"));
  ZP_REQUIRE(weight.dim() == dims + 2, what + ": weight must have " + std::to_string(dims + 2) + " dimensions");
  const int64_t out_channels = weight.size(0), channels = x.size(1);
  ZP_REQUIRE(groups >= 1 && channels == weight.size(1) * groups, what + ": x has " + std::to_string(channels) +
                                                                     " channels, the weight expects " +
                                                                     std::to_string(weight.size(1) * groups));
  ConvGeometry g = geometry(what, dims, x, weight, stride, padding, dilation);
  const PackedHeader& h = read_header(bytes(packed), packed.numel(), kernel, name);
  const int64_t kernel_h = dims == 3 ? weight.size(2) * weight.size(3) : weight.size(2), kernel_w = g.kernel_w;
  const PackKind kind = conv_kind(dims, groups, out_channels, kernel_h, kernel_w, weight.size(1), dilation, stride);
  // Winograd's weights may have been packed directly: for any stride, or as their sums are too large.
  const int64_t terms = h.kind == PackKind::kWinograd ? 9 * h.kc : h.unique_taps * h.kc;
  ZP_REQUIRE((h.kind == kind || (kind == PackKind::kWinograd && h.kind == PackKind::kDirect)) &&
                 h.kernel_w == kernel_w && h.groups * h.n == out_channels &&
                 (h.kind == PackKind::kDepthwise ||
                  ((h.kind == PackKind::kSmallGroups ? h.filters * groups == h.n : h.groups == groups) &&
                   terms == kernel_h * kernel_w * weight.size(1))),
             what + ": `packed` was made for other groups, dilation, stride or shape");

  const int64_t batch = x.size(0);
  std::vector<int64_t> sizes = {batch, out_channels, g.out_d, g.out_h, g.out_w};
  if (dims == 2) sizes.erase(sizes.begin() + 2);
  Tensor out = empty_strided(sizes, channels_last_strides(sizes), spec.dtype);
  if (tail.residual) {
    ZP_REQUIRE(is_byte(*tail.residual) && sizes_of(*tail.residual) == sizes,
               what + ": residual must be 8 bit with the output's shape");
    tail.residual = to_channels_last(*tail.residual);
  }
  if (batch == 0) return out;
  Epilogue epilogue = make_epilogue(name, bytes(packed), h, w_scale, bias, spec, tail);
  epilogue.residual_stride = out_channels;

  const auto pad_value = static_cast<uint8_t>(to_u8_domain(spec.x_zero_point, x.scalar_type()));
  const bool few_channels = h.kind == PackKind::kRows || h.kind == PackKind::kGathered;
  const bool lanewise = h.kind == PackKind::kDepthwise || h.kind == PackKind::kSmallGroups;
  const bool runs_over = h.kind == PackKind::kDirect ? h.kc % 4 > 0 : h.kind == PackKind::kSmallGroups && channels < 16;
  const bool copies = few_channels || sign_flip(x.scalar_type()) || runs_over;
  if (!copies) x = to_channels_last(x);
  const uint8_t* input = copies ? padded_copy(x, pad_value, g) : bytes(x);
  // Padding row of zero points, kept at the end of this thread's input scratch only while unpadded
  // copies are not in use: a copy has its border built in.
  const uint8_t* pad_row = nullptr;
  if (!copies) {
    uint8_t* row = scratch(Scratch::kInput, static_cast<size_t>(channels) + 64);
    std::fill_n(row, channels + 64, pad_value);
    pad_row = row;
  } else if (lanewise) {
    pad_row = input;  // kernel rows past the last are read with weight 0: any readable bytes do
  }

  const auto fill = [&](auto& p) {
    p.x = input;
    p.conv = g;
    p.channels = channels;
    p.repeats = h.repeats;
    p.pad_row = pad_row;
    p.weight = bytes(packed) + h.data_offset;
    p.out = out.data_ptr();
    p.epilogue = epilogue;
  };
  if (h.kind == PackKind::kDepthwise) {
    DepthwiseParams p = {};
    fill(p);
    p.kernel_h = kernel_h;
    run_rows(p, batch * g.out_h, g.out_w * channels, kernel_h * kernel_w / 8, kernel.depthwise_scratch(p),
             kernel.depthwise);
    return out;
  }

  if (h.kind == PackKind::kSmallGroups) {
    SmallGroupsParams p = {};
    fill(p);
    p.filters = out_channels;
    p.group_channels = h.kc;
    p.group_filters = h.filters;
    p.broadcasts = h.panel_vectors == 1;
    p.kernel_rows = kernel_h;
    p.word_rows = word_rows(h.kc);
    p.row_words = row_words(h.kc);
    p.pieces = h.pieces;
    p.spread = bytes(packed) + h.spread_offset;
    run_rows(p, batch * g.out_d * g.out_h, g.out_w * out_channels, kernel_h * kernel_w * h.kc / 8,
             kernel.small_groups_scratch(p), kernel.small_groups);
    return out;
  }

  IgemmParams p = {};
  p.a_stride = channels;
  p.pad_row = pad_row;
  p.unique_taps = h.unique_taps;
  p.taps = h.unique_taps * h.repeats;
  p.kc = h.kc;
  p.n = h.n;
  p.out_stride = out_channels;
  ConvGeometry rows = g;
  if (few_channels) rows.kernel_w = 1;
  if (h.kind == PackKind::kGathered) {
    // Where rows of the kernel are neighbours, too, as of one column, there is nothing to put together.
    const bool apart = dims == 3 || g.dilation_h != 1 || g.row_stride != kernel_w * channels;
    p.pieces = kernel_h > 1 && apart ? kernel_h : 0;
  }
  const int64_t m = batch * g.out_d * g.out_h * g.out_w;
  const bool padded = g.pad_d > 0 || g.pad_h > 0 || g.pad_w > 0;
  // A 1x1 kernel with stride 1 and no padding is a plain matrix product.
  const bool plain = h.unique_taps == 1 && g.stride_d == 1 && g.stride_h == 1 && g.stride_w == 1 && !padded && !copies;
  p.conv = plain ? nullptr : &rows;
  // Padding adds nothing where its byte is 0 and products are of uint8.
  const bool pads = h.kind == PackKind::kDirect && dims == 2 && !plain && !copies && pad_value == 0 && padded;
  const bool bytes_out = epilogue.output == Epilogue::Output::kU8 && !epilogue.table;
  if (pads && bytes_out && !kernel.splits && g.out_h * g.out_w <= kOrderedPixels) {
    static thread_local PixelOrder pixels;
    pixels.fill(g, kernel_h);
    p.order = pixels.order.data();
    p.tiles = pixels.tiles.data();
    p.tile_count = static_cast<int64_t>(pixels.tiles.size()) - 1;
  }
  const int64_t element = spec.dtype == ScalarType::Float || spec.dtype == ScalarType::Int ? 4 : 1;
  for (int64_t group = 0; group < h.groups; ++group) {
    p.a = input + group * h.kc;
    p.b = bytes(packed) + h.data_offset + group * h.group_bytes;
    p.out = bytes(out) + group * h.n * element;
    p.epilogue = epilogue;
    const int64_t slot = group * slots_per_group(h);
    p.epilogue.init += slot;
    p.epilogue.mult += slot;
    p.epilogue.bias += slot;
    if (p.epilogue.residual) p.epilogue.residual += group * h.n;
    if (h.kind == PackKind::kWinograd)
      run_winograd(kernel, p, batch);
    else
      run_igemm(kernel, p, m);
  }
  return out;
}

template <int64_t Dims>
Tensor conv(Tensor x, Tensor weight, Tensor packed, Tensor w_scale, OptionalTensor, OptionalTensor bias,
            std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups,
            double x_scale, int64_t x_zero_point, double scale, int64_t zero_point, int64_t quant_min,
            int64_t quant_max, ScalarType dtype, OptionalTensor residual, double residual_scale,
            int64_t residual_zero_point, double sum_scale, int64_t sum_zero_point, int64_t sum_min, int64_t sum_max,
            OptionalTensor table) {
  const OutputSpec spec{x_scale, x_zero_point, x.scalar_type(), scale, zero_point, quant_min, quant_max, dtype};
  const TailSpec tail{.residual = residual,
                      .residual_scale = residual_scale,
                      .residual_zero_point = residual_zero_point,
                      .sum_scale = sum_scale,
                      .sum_zero_point = sum_zero_point,
                      .sum_min = sum_min,
                      .sum_max = sum_max,
                      .table = table};
  return convolve(Dims == 2 ? "conv2d" : "conv3d", Dims, x, weight, packed, w_scale, bias, stride, padding, dilation,
                  groups, spec, tail);
}

}  // namespace

constexpr int64_t kConvResidual = 17;  // of the arguments

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CPU, m) {
  ZP_OPERATOR(m, "conv2d_pack", conv2d_pack);
  ZP_OPERATOR_OVER(m, "conv2d", conv<2>, kConvResidual);
  ZP_OPERATOR(m, "conv3d_pack", conv3d_pack);
  ZP_OPERATOR_OVER(m, "conv3d", conv<3>, kConvResidual);
}

}  // namespace zeropoint
