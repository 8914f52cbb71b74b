// zeropoint::max_pool2d, avg_pool2d, adaptive_avg_pool2d on [N, C, H, W], NHWC inside.
#include <cmath>

#include "../engine/operators.h"
#include "../kernels/dispatch.h"
#include "epilogue_params.h"
#include "threads.h"

namespace zeropoint {
namespace {

int64_t pooled_extent(const char* what, int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation,
                      bool ceil_mode) {
  const int64_t span = in + 2 * pad - dilation * (kernel - 1) - 1;
  int64_t out = span < 0 ? 0 : (span + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  // The last window must start inside the input or its left padding.
  if (ceil_mode && (out - 1) * stride >= in + pad) --out;
  ZP_REQUIRE(out > 0,
             std::string(what) + ": the window does not fit into the padded input of extent " + std::to_string(in));
  return out;
}

PoolParams make_params(const char* what, const Tensor& x, const std::vector<int64_t>& kernel,
                       const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                       const std::vector<int64_t>& dilation, bool ceil_mode) {
  ZP_REQUIRE(kernel.size() == 2 && stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
             std::string(what) + ": kernel_size, stride, padding and dilation need 2 values each");
  for (int i = 0; i < 2; ++i) {
    const auto d = static_cast<size_t>(i);
    ZP_REQUIRE(kernel[d] > 0 && stride[d] > 0 && dilation[d] > 0,
               std::string(what) + ": kernel_size, stride and dilation must be positive");
    ZP_REQUIRE(padding[d] >= 0 && padding[d] * 2 <= kernel[d],
               std::string(what) + ": padding must be at most half of the kernel size");
  }
  PoolParams p = {};
  ConvGeometry& g = p.conv;
  p.channels = x.size(1);
  p.kernel_h = kernel[0];
  g.in_h = x.size(2);
  g.in_w = x.size(3);
  g.kernel_w = kernel[1];
  g.stride_h = stride[0];
  g.stride_w = stride[1];
  g.pad_h = padding[0];
  g.pad_w = padding[1];
  g.dilation_h = dilation[0];
  g.dilation_w = dilation[1];
  g.out_h = pooled_extent(what, g.in_h, kernel[0], stride[0], padding[0], dilation[0], ceil_mode);
  g.out_w = pooled_extent(what, g.in_w, kernel[1], stride[1], padding[1], dilation[1], ceil_mode);
  g.row_stride = g.in_w * p.channels;
  g.image_stride = g.in_h * g.row_stride;
  p.in_xor = sign_flip(x.scalar_type());
  return p;
}

void check_window(const char* what, int64_t rows, int64_t columns) {
  ZP_REQUIRE(rows * columns <= (int64_t{1} << 23), std::string(what) + ": a window of " + std::to_string(rows) + "x" +
                                                       std::to_string(columns) +
                                                       " is averaged, at most 2^23 positions fit sums of 32 bits");
}

// Averages in the input's scale and zero point.
void keep_qparams(PoolParams& p, int64_t zero_point, ScalarType dtype) {
  p.zero_point = p.out_zero_point = to_u8_domain(zero_point, dtype);
  p.in_xor = p.out_xor = sign_flip(dtype);
  p.lo = 0;
  p.hi = 255;
}

// A window over all of [H, W], for images that are one pixel of the result each.
ConvGeometry whole_map(int64_t height, int64_t width, int64_t row_stride, int64_t image_stride) {
  return {.in_h = height,
          .in_w = width,
          .out_h = 1,
          .out_w = 1,
          .kernel_w = width,
          .stride_h = 1,
          .stride_w = 1,
          .pad_h = 0,
          .pad_w = 0,
          .dilation_h = 1,
          .dilation_w = 1,
          .row_stride = row_stride,
          .image_stride = image_stride};
}

void check_input(const char* what, const Tensor& x) {
  ZP_REQUIRE(is_byte(x) && x.dim() == 4, std::string(what) + ": x must be uint8 or int8 [N, C, H, W]");
}

Tensor empty_output(const Tensor& x, int64_t out_h, int64_t out_w) {
  const std::vector<int64_t> sizes = {x.size(0), x.size(1), out_h, out_w};
  return empty_strided(sizes, channels_last_strides(sizes), x.scalar_type());
}

Tensor max_pool2d(Tensor x, std::vector<int64_t> kernel_size, std::vector<int64_t> stride, std::vector<int64_t> padding,
                  std::vector<int64_t> dilation, bool ceil_mode) {
  check_input("max_pool2d", x);
  x = to_channels_last(x);
  PoolParams p = make_params("max_pool2d", x, kernel_size, stride, padding, dilation, ceil_mode);
  Tensor out = empty_output(x, p.conv.out_h, p.conv.out_w);
  p.x = bytes(x);
  p.out = bytes(out);
  const KernelTable& kernel = kernels();
  parallel(x.size(0) * p.conv.out_h, p.conv.out_w * p.channels * kernel_size[0] * kernel_size[1] / 4,
           [&](int64_t begin, int64_t end) { kernel.max_pool(p, begin, end); });
  return out;
}

Tensor avg_pool2d(Tensor x, int64_t zero_point, std::vector<int64_t> kernel_size, std::vector<int64_t> stride,
                  std::vector<int64_t> padding, bool ceil_mode, bool count_include_pad,
                  std::optional<int64_t> divisor_override) {
  check_input("avg_pool2d", x);
  ZP_REQUIRE(!divisor_override || *divisor_override != 0, "avg_pool2d: divisor_override must not be 0");
  x = to_channels_last(x);
  PoolParams p = make_params("avg_pool2d", x, kernel_size, stride, padding, {1, 1}, ceil_mode);
  Tensor out = empty_output(x, p.conv.out_h, p.conv.out_w);
  check_window("avg_pool2d", std::min(kernel_size[0], p.conv.in_h), std::min(kernel_size[1], p.conv.in_w));
  p.x = bytes(x);
  p.out = bytes(out);
  keep_qparams(p, zero_point, x.scalar_type());
  p.count_include_pad = count_include_pad;
  p.divisor = divisor_override.value_or(0);
  const KernelTable& kernel = kernels();
  parallel(x.size(0) * p.conv.out_h, p.conv.out_w * p.channels * kernel_size[0] * kernel_size[1] / 4,
           [&](int64_t begin, int64_t end) { kernel.avg_pool(p, begin, end); });
  return out;
}

// Window i of `out` over `in` is [floor(i * in / out), ceil((i + 1) * in / out)).
Tensor adaptive_avg_pool2d(Tensor x, int64_t zero_point, std::vector<int64_t> output_size) {
  check_input("adaptive_avg_pool2d", x);
  ZP_REQUIRE(output_size.size() == 2 && output_size[0] >= 0 && output_size[1] >= 0,
             "adaptive_avg_pool2d: output_size needs 2 non-negative values");
  ZP_REQUIRE(x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0,
             "adaptive_avg_pool2d: channels, height and width must not be 0");
  x = to_channels_last(x);
  const int64_t out_h = output_size[0], out_w = output_size[1], in_h = x.size(2), in_w = x.size(3),
                channels = x.size(1);
  Tensor out = empty_output(x, out_h, out_w);
  const KernelTable& kernel = kernels();
  if (out_w == 0 || out_h == 0) return out;
  check_window("adaptive_avg_pool2d", std::min(in_h / out_h + 2, in_h), std::min(in_w / out_w + 2, in_w));
  parallel(x.size(0) * out_h, in_h * in_w * channels / out_h, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t ow = 0; ow < out_w; ++ow) {
        const int64_t n = row / out_h, oh = row % out_h;
        const int64_t h0 = oh * in_h / out_h, h1 = ((oh + 1) * in_h + out_h - 1) / out_h;
        const int64_t w0 = ow * in_w / out_w, w1 = ((ow + 1) * in_w + out_w - 1) / out_w;
        // One output pixel: an average pool with a window of its own.
        PoolParams p = {};
        p.channels = channels;
        p.kernel_h = h1 - h0;
        p.conv = whole_map(h1 - h0, w1 - w0, in_w * channels, in_h * in_w * channels);
        keep_qparams(p, zero_point, x.scalar_type());
        p.x = bytes(x) + ((n * in_h + h0) * in_w + w0) * channels;
        p.out = bytes(out) + (row * out_w + ow) * channels;
        kernel.avg_pool(p, 0, 1);
      }
  });
  return out;
}

// The average over all positions, with qparams of its own.
Tensor global_avg_pool2d(Tensor x, double x_scale, int64_t x_zero_point, double scale, int64_t zero_point,
                         int64_t quant_min, int64_t quant_max, ScalarType dtype) {
  constexpr const char* what = "global_avg_pool2d";
  check_input(what, x);
  ZP_REQUIRE(dtype == ScalarType::Byte || dtype == ScalarType::Char, "global_avg_pool2d: dtype must be uint8 or int8");
  const int64_t height = x.size(2), width = x.size(3), channels = x.size(1);
  ZP_REQUIRE(height > 0 && width > 0, "global_avg_pool2d: height and width must not be 0");
  check_window(what, height, width);
  check_qparams(what, "x", x_scale, x_zero_point, x.scalar_type());
  check_qparams(what, "y", scale, zero_point, dtype);
  x = to_channels_last(x);
  const std::vector<int64_t> sizes = {x.size(0), channels, 1, 1};
  Tensor out = empty_strided(sizes, channels_last_strides(sizes), dtype);
  PoolParams p = {};
  p.x = bytes(x);
  p.out = bytes(out);
  p.channels = channels;
  p.kernel_h = height;
  p.conv = whole_map(height, width, width * channels, height * width * channels);
  p.factor = static_cast<float>(as_f32(x_scale) / (static_cast<double>(height * width) * as_f32(scale)));
  ZP_REQUIRE(p.factor > 0 && std::isfinite(p.factor), "global_avg_pool2d: x_scale / scale is not finite in float32");
  p.zero_point = to_u8_domain(x_zero_point, x.scalar_type());
  p.out_zero_point = to_u8_domain(zero_point, dtype);
  p.in_xor = sign_flip(x.scalar_type());
  p.out_xor = sign_flip(dtype);
  p.lo = static_cast<uint8_t>(to_u8_domain(quant_min, dtype));
  p.hi = static_cast<uint8_t>(to_u8_domain(quant_max, dtype));
  const KernelTable& kernel = kernels();
  parallel(x.size(0), height * width * channels, [&](int64_t begin, int64_t end) { kernel.avg_pool(p, begin, end); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CPU, m) {
  ZP_OPERATOR(m, "max_pool2d", max_pool2d);
  ZP_OPERATOR(m, "avg_pool2d", avg_pool2d);
  ZP_OPERATOR(m, "adaptive_avg_pool2d", adaptive_avg_pool2d);
  ZP_OPERATOR(m, "global_avg_pool2d", global_avg_pool2d);
}

}  // namespace zeropoint
