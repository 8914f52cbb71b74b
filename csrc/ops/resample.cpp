// zeropoint::interpolate_bilinear2d.
#include <cmath>

#include "../engine/operators.h"
#include "../kernels/dispatch.h"
#include "threads.h"

namespace zeropoint {
namespace {

// Where an output position looks along one dimension.
struct Source {
  int64_t first, second;
  float weight;  // of the second
};

std::vector<Source> sources(int64_t in, int64_t out, bool align_corners, double factor) {
  double ratio = 0;
  if (align_corners)
    ratio = out > 1 ? static_cast<double>(in - 1) / static_cast<double>(out - 1) : 0;
  else
    ratio = factor > 0 ? 1.0 / factor : static_cast<double>(in) / static_cast<double>(out);
  std::vector<Source> found(static_cast<size_t>(out));
  for (int64_t i = 0; i < out; ++i) {
    const auto position = static_cast<double>(i);
    const double at = align_corners ? ratio * position : std::max(ratio * (position + 0.5) - 0.5, 0.0);
    const auto first = std::min(static_cast<int64_t>(at), in - 1);
    found[static_cast<size_t>(i)] = {first, std::min(first + 1, in - 1),
                                     static_cast<float>(at - static_cast<double>(first))};
  }
  return found;
}

Tensor interpolate_bilinear2d(Tensor x, std::vector<int64_t> output_size, bool align_corners, double scale_h,
                              double scale_w) {
  ZP_REQUIRE(is_byte(x) && x.dim() == 4, "interpolate_bilinear2d: x must be uint8 or int8 [N, C, H, W]");
  const int64_t batch = x.size(0), channels = x.size(1), in_h = x.size(2), in_w = x.size(3);
  ZP_REQUIRE(in_h > 0 && in_w > 0, "interpolate_bilinear2d: height and width must not be 0");
  ZP_REQUIRE(std::isfinite(scale_h) && std::isfinite(scale_w) && scale_h >= 0 && scale_w >= 0,
             "interpolate_bilinear2d: scale_h and scale_w must be finite and at least 0");
  if (output_size.empty()) {
    const double limit = 65536;
    ZP_REQUIRE(static_cast<double>(in_h) * scale_h < limit && static_cast<double>(in_w) * scale_w < limit,
               "interpolate_bilinear2d: the output is too large");
    output_size = {static_cast<int64_t>(static_cast<double>(in_h) * scale_h),
                   static_cast<int64_t>(static_cast<double>(in_w) * scale_w)};
  }
  ZP_REQUIRE(output_size.size() == 2 && output_size[0] > 0 && output_size[1] > 0,
             "interpolate_bilinear2d: output_size needs 2 positive values, or scale_h and scale_w that give them");
  ZP_REQUIRE(output_size[0] < 65536 && output_size[1] < 65536,
             "interpolate_bilinear2d: height and width of the output must be less than 65536");
  x = to_channels_last(x);
  const int64_t out_h = output_size[0], out_w = output_size[1];
  const std::vector<int64_t> sizes = {batch, channels, out_h, out_w};
  Tensor out = empty_strided(sizes, channels_last_strides(sizes), x.scalar_type());
  const auto rows = sources(in_h, out_h, align_corners, scale_h),
             columns = sources(in_w, out_w, align_corners, scale_w);
  const uint8_t* source = bytes(x);
  uint8_t* target = bytes(out);
  const uint8_t flip = sign_flip(x.scalar_type());
  const KernelTable& kernel = kernels();
  const int64_t width = out_w * channels;
  parallel(batch * out_h, width * 2, [&](int64_t begin, int64_t end) {
    // The two input rows in use, mixed to the output's width; neighbouring output rows share them.
    auto* mixed = reinterpret_cast<float*>(scratch(Scratch::kWorker, static_cast<size_t>(2 * width) * 4));
    int64_t held[2] = {-1, -1};
    const auto mix = [&](int64_t row) {  // to the place of its parity: two neighbours never share one
      const int64_t place = row % 2;
      float* out_row = mixed + place * width;
      if (held[place] == row) return out_row;
      held[place] = row;
      const uint8_t* in_row = source + row * in_w * channels;
      for (int64_t i = 0; i < out_w; ++i) {
        const Source& w = columns[static_cast<size_t>(i)];
        kernel.mix_pixels(in_row + w.first * channels, in_row + w.second * channels, channels, w.weight, flip,
                          out_row + i * channels);
      }
      return out_row;
    };
    for (int64_t row = begin; row < end; ++row) {
      const Source& h = rows[static_cast<size_t>(row % out_h)];
      const int64_t image = row / out_h * in_h;
      const float *upper = mix(image + h.first), *lower = mix(image + h.second);
      kernel.mix_rows(upper, lower, width, h.weight, flip, target + row * width);
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CPU, m) { ZP_OPERATOR(m, "interpolate_bilinear2d", interpolate_bilinear2d); }

}  // namespace zeropoint
