// zeropoint::add, mul and lookup on 8-bit tensors, and what is elementwise on others.
#include <cmath>
#include <cstring>

#include "../engine/operators.h"
#include "../kernels/dispatch.h"
#include "binary_params.h"
#include "threads.h"

namespace zeropoint {
namespace {

constexpr int64_t kBlock = 8192;

using BinaryKernel = void (*)(const BinaryParams&, int64_t);

Tensor run_binary(const char* what, BinaryKernel kernel, Tensor a, Tensor b, BinaryParams p, double a_scale,
                  int64_t a_zero_point, double b_scale, int64_t b_zero_point, double scale, int64_t zero_point,
                  int64_t quant_min, int64_t quant_max, ScalarType dtype) {
  ZP_REQUIRE(is_byte(a) && is_byte(b), std::string(what) + ": a and b must be uint8 or int8");
  const auto sizes = sizes_of(a), b_sizes = sizes_of(b);
  const bool by_channel = sizes.size() == 4 && b_sizes.size() == 4 && b_sizes[0] == sizes[0] &&
                          b_sizes[1] == sizes[1] && b_sizes[2] == 1 && b_sizes[3] == 1 && sizes[2] * sizes[3] != 1;
  ZP_REQUIRE(by_channel || sizes == b_sizes,
             std::string(what) +
                 ": b must have the shape of a, or [N, C, 1, 1] where a is [N, C, H, W]; broadcast others first");
  ZP_REQUIRE(dtype == ScalarType::Byte || dtype == ScalarType::Char,
             std::string(what) + ": dtype must be uint8 or int8");
  check_qparams(what, "a", a_scale, a_zero_point, a.scalar_type());
  check_qparams(what, "b", b_scale, b_zero_point, b.scalar_type());
  check_qparams(what, "y", scale, zero_point, dtype);
  a = by_channel ? to_channels_last(a) : dense(a);
  if (by_channel)
    b = to_contiguous(b);
  else if (!same_layout(a, b))
    b = is_channels_last(a) && !a.is_contiguous() ? to_channels_last(b) : torch::stable::contiguous(b);
  Tensor out = by_channel ? empty_strided(sizes, channels_last_strides(sizes), dtype) : empty_like_dense(a, dtype);
  p.a = bytes(a);
  p.b = bytes(b);
  p.out = bytes(out);
  p.a_zero_point = to_u8_domain(a_zero_point, a.scalar_type());
  p.b_zero_point = to_u8_domain(b_zero_point, b.scalar_type());
  p.out_zero_point = to_u8_domain(zero_point, dtype);
  p.a_xor = sign_flip(a.scalar_type());
  p.b_xor = sign_flip(b.scalar_type());
  p.out_xor = sign_flip(dtype);
  p.lo = static_cast<uint8_t>(to_u8_domain(quant_min, dtype));
  p.hi = static_cast<uint8_t>(to_u8_domain(quant_max, dtype));
  const int64_t n = a.numel();
  if (by_channel) {
    // The channels' values are repeated, so that the kernel has long rows.
    const int64_t channels = sizes[1], pixels = sizes[2] * sizes[3], lanes = kernels().lanes * 4;
    const int64_t run = std::min<int64_t>(pixels, std::max<int64_t>(1, 2048 / std::max<int64_t>(channels, 1)));
    const int64_t runs = (pixels + run - 1) / run, length = run * channels;
    parallel(sizes[0] * runs, length, [&](int64_t begin, int64_t end) {
      auto* floats = reinterpret_cast<float*>(scratch(Scratch::kWorker, static_cast<size_t>(5 * (length + lanes))));
      auto* repeated = reinterpret_cast<uint8_t*>(floats + length + lanes);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t image = item / runs, first = item % runs * run;
        if (item == begin || first == 0) {
          for (int64_t i = 0; i < run; ++i)
            std::memcpy(repeated + i * channels, p.b + image * channels, static_cast<size_t>(channels));
          kernels().panel_floats(repeated, length, p.b_xor, p.b_zero_point, floats);
        }
        BinaryParams part = p;
        part.a = p.a + (image * pixels + first) * channels;
        part.b_floats = floats;
        part.out = p.out + (image * pixels + first) * channels;
        kernel(part, std::min(run, pixels - first) * channels);
      }
    });
    return out;
  }
  parallel((n + kBlock - 1) / kBlock, kBlock, [&](int64_t begin, int64_t end) {
    BinaryParams part = p;
    part.a += begin * kBlock;
    part.b += begin * kBlock;
    part.out += begin * kBlock;
    kernel(part, std::min(n, end * kBlock) - begin * kBlock);
  });
  return out;
}

Tensor add(Tensor a, double a_scale, int64_t a_zero_point, Tensor b, double b_scale, int64_t b_zero_point, double scale,
           int64_t zero_point, int64_t quant_min, int64_t quant_max, ScalarType dtype) {
  BinaryParams p = {};
  set_add_multipliers(p, a_scale, b_scale, scale);
  return run_binary("add", kernels().add, a, b, p, a_scale, a_zero_point, b_scale, b_zero_point, scale, zero_point,
                    quant_min, quant_max, dtype);
}

Tensor mul(Tensor a, double a_scale, int64_t a_zero_point, Tensor b, double b_scale, int64_t b_zero_point, double scale,
           int64_t zero_point, int64_t quant_min, int64_t quant_max, ScalarType dtype) {
  BinaryParams p = {};
  set_mul_multiplier(p, a_scale, b_scale, scale);
  return run_binary("mul", kernels().mul, a, b, p, a_scale, a_zero_point, b_scale, b_zero_point, scale, zero_point,
                    quant_min, quant_max, dtype);
}

// Strides of `t` over the dimensions of a result of these sizes; 0 where it is repeated.
std::vector<int64_t> broadcast_strides(const Tensor& t, const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 0);
  const size_t missing = sizes.size() - static_cast<size_t>(t.dim());
  for (size_t i = missing; i < sizes.size(); ++i)
    if (t.size(static_cast<int64_t>(i - missing)) != 1) strides[i] = t.stride(static_cast<int64_t>(i - missing));
  return strides;
}

// f(row of a, its step, row of b, its step, length, row of the result) for all rows of the broadcast shape.
template <class T, class F>
Tensor broadcast(const std::string& what, const Tensor& a, const Tensor& b, const F& f) {
  const auto a_sizes = sizes_of(a), b_sizes = sizes_of(b);
  std::vector<int64_t> sizes = a_sizes.size() < b_sizes.size() ? b_sizes : a_sizes;
  const auto& other = a_sizes.size() < b_sizes.size() ? a_sizes : b_sizes;
  for (size_t i = 0; i < other.size(); ++i) {
    int64_t& size = sizes[sizes.size() - other.size() + i];
    ZP_REQUIRE(size == other[i] || size == 1 || other[i] == 1, what + ": the shapes of a and b cannot be broadcast");
    if (size == 1) size = other[i];
  }
  Tensor out = empty_contiguous(sizes, a.scalar_type());
  auto* target = static_cast<T*>(out.data_ptr());
  const auto sa = broadcast_strides(a, sizes), sb = broadcast_strides(b, sizes);
  const int64_t inner = sizes.empty() ? 1 : sizes.back();
  const int64_t step_a = sizes.empty() ? 0 : sa.back(), step_b = sizes.empty() ? 0 : sb.back();
  parallel(inner ? out.numel() / inner : 0, inner, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T *x = static_cast<const T*>(a.data_ptr()), *y = static_cast<const T*>(b.data_ptr());
      int64_t rest = row;
      for (size_t d = sizes.size() > 0 ? sizes.size() - 1 : 0; d-- > 0;) {
        x += rest % sizes[d] * sa[d];
        y += rest % sizes[d] * sb[d];
        rest /= sizes[d];
      }
      f(x, step_a, y, step_b, inner, target + row * inner);
    }
  });
  return out;
}

Tensor add_float(Tensor a, Tensor b, bool subtract) {
  ZP_REQUIRE(a.scalar_type() == ScalarType::Float && b.scalar_type() == ScalarType::Float,
             "add_float: a and b must be float32");
  const auto a_sizes = sizes_of(a), b_sizes = sizes_of(b);
  const KernelTable& kernel = kernels();
  const auto data = [](const Tensor& t) { return static_cast<const float*>(t.data_ptr()); };
  const bool nhwc =
      a_sizes == b_sizes && !a.is_contiguous() && !b.is_contiguous() && is_channels_last(a) && is_channels_last(b);
  if (nhwc || (a_sizes == b_sizes && a.is_contiguous() && b.is_contiguous())) {
    Tensor out = empty_like_dense(a, ScalarType::Float);
    auto* target = static_cast<float*>(out.data_ptr());
    const int64_t n = a.numel();
    parallel((n + kBlock - 1) / kBlock, kBlock, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kBlock;
      kernel.add_f32(data(a) + first, data(b) + first, std::min(n, end * kBlock) - first, subtract, target + first);
    });
    return out;
  }
  return broadcast<float>("add_float", a, b,
                          [&](const float* x, int64_t dx, const float* y, int64_t dy, int64_t inner, float* o) {
                            if (dx == 1 && dy == 1) {
                              kernel.add_f32(x, y, inner, subtract, o);
                              return;
                            }
                            for (int64_t i = 0; i < inner; ++i) {
                              const float v = y[i * dy];
                              o[i] = x[i * dx] + (subtract ? -v : v);
                            }
                          });
}

// Wraps, as torch's.
Tensor add_integers(Tensor a, Tensor b, bool subtract) {
  ZP_REQUIRE(a.scalar_type() == ScalarType::Long && b.scalar_type() == ScalarType::Long,
             "add_integers: a and b must be int64");
  return broadcast<int64_t>("add_integers", a, b,
                            [&](const int64_t* x, int64_t dx, const int64_t* y, int64_t dy, int64_t inner, int64_t* o) {
                              for (int64_t i = 0; i < inner; ++i) {
                                const auto v = static_cast<uint64_t>(y[i * dy]);
                                o[i] = static_cast<int64_t>(static_cast<uint64_t>(x[i * dx]) + (subtract ? 0 - v : v));
                              }
                            });
}

Tensor rotary(Tensor x, Tensor cos, Tensor sin) {
  for (const Tensor& t : {x, cos, sin})
    ZP_REQUIRE(t.scalar_type() == ScalarType::Float && t.dim() >= 1, "rotary: x, cos and sin must be float32");
  const auto sizes = sizes_of(x);
  const int64_t n = sizes.back();
  ZP_REQUIRE(n % 2 == 0, "rotary: x must have an even number of features, got " + std::to_string(n));
  for (Tensor* t : {&cos, &sin}) {
    const auto own = sizes_of(*t);
    bool fits = own.size() <= sizes.size() && own.back() == n;
    for (size_t i = 0; fits && i < own.size(); ++i) {
      const int64_t size = sizes[sizes.size() - own.size() + i];
      fits = own[i] == size || own[i] == 1;
    }
    ZP_REQUIRE(fits, "rotary: cos and sin must have the features of x, and its other dimensions or 1");
    if (n > 1 && t->stride(-1) != 1) *t = torch::stable::contiguous(*t);
  }
  if (n > 1 && x.stride(-1) != 1) x = torch::stable::contiguous(x);
  Tensor out = empty_contiguous(sizes, ScalarType::Float);
  const auto sx = broadcast_strides(x, sizes), sc = broadcast_strides(cos, sizes), ss = broadcast_strides(sin, sizes);
  const auto data = [](const Tensor& t) { return static_cast<const float*>(t.data_ptr()); };
  auto* target = static_cast<float*>(out.data_ptr());
  const KernelTable& kernel = kernels();
  parallel(n ? out.numel() / n : 0, n, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *a = data(x), *c = data(cos), *s = data(sin);
      int64_t rest = row;
      for (size_t d = sizes.size() - 1; d-- > 0;) {
        const int64_t i = rest % sizes[d];
        a += i * sx[d];
        c += i * sc[d];
        s += i * ss[d];
        rest /= sizes[d];
      }
      kernel.rotate_row(a, c, s, n, target + row * n);
    }
  });
  return out;
}

Tensor silu_mul(Tensor gate, Tensor up) {
  ZP_REQUIRE(gate.scalar_type() == ScalarType::Float && up.scalar_type() == ScalarType::Float &&
                 sizes_of(gate) == sizes_of(up),
             "silu_mul: gate and up must be float32 of the same shape");
  gate = to_contiguous(gate);
  up = to_contiguous(up);
  Tensor out = empty_contiguous(sizes_of(gate), ScalarType::Float);
  const auto at = [](const Tensor& t, int64_t i) { return static_cast<float*>(t.data_ptr()) + i; };
  const int64_t n = out.numel();
  const KernelTable& kernel = kernels();
  parallel((n + kBlock - 1) / kBlock, 4 * kBlock, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kBlock;
    kernel.silu_mul(at(gate, first), at(up, first), std::min(n, end * kBlock) - first, at(out, first));
  });
  return out;
}

Tensor lookup(Tensor x, Tensor table) {
  ZP_REQUIRE(is_byte(x), "lookup: x must be uint8 or int8");
  ZP_REQUIRE(is_byte(table) && table.numel() == 256 && table.is_contiguous(),
             "lookup: table must be 256 contiguous 8-bit values");
  x = dense(x);
  Tensor out = empty_like_dense(x, table.scalar_type());
  const int64_t n = x.numel();
  const KernelTable& kernel = kernels();
  parallel((n + kBlock - 1) / kBlock, kBlock, [&](int64_t begin, int64_t end) {
    kernel.lookup(bytes(x) + begin * kBlock, std::min(n, end * kBlock) - begin * kBlock, bytes(table),
                  bytes(out) + begin * kBlock);
  });
  return out;
}

Tensor arange(int64_t start, int64_t end, int64_t step) {
  // As numbers of 64 bits may be anything, in floating point first.
  const double span = static_cast<double>(end) - static_cast<double>(start);
  ZP_REQUIRE(step != 0 && (step > 0 ? span >= 0 : span <= 0), "arange: the step " + std::to_string(step) +
                                                                  " does not lead from " + std::to_string(start) +
                                                                  " to " + std::to_string(end));
  const double count = std::ceil(span / static_cast<double>(step));
  ZP_REQUIRE(count <= 268435456.0, "arange: more than 2^28 values");
  Tensor out = empty_contiguous({static_cast<int64_t>(count)}, ScalarType::Long);
  auto* target = static_cast<int64_t*>(out.data_ptr());
  for (int64_t i = 0; i < static_cast<int64_t>(count); ++i) target[i] = start + i * step;
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zeropoint, CPU, m) {
  ZP_OPERATOR(m, "add", add);
  ZP_OPERATOR(m, "mul", mul);
  ZP_OPERATOR(m, "add_float", add_float);
  ZP_OPERATOR(m, "rotary", rotary);
  ZP_OPERATOR(m, "silu_mul", silu_mul);
  ZP_OPERATOR(m, "lookup", lookup);
  ZP_OPERATOR(m, "arange", arange);
  ZP_OPERATOR(m, "add_integers", add_integers);
}

}  // namespace zeropoint
