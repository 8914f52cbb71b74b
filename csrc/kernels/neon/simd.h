// Vocabulary of AArch64: 4 int32 lanes. With i8mm the dot product of unsigned and signed bytes is one instruction;
// with dotprod alone one side is shifted by 128 and the surplus, 128 times the other side's sum, taken off again (the
// compiler computes that sum once for all products that share it).
#pragma once
#include <arm_neon.h>

#include <cstdint>

namespace zeropoint {
namespace {

struct Neon {
  using Half = Neon;  // never used: kHalfLanes is 0
  using I32 = int32x4_t;
  using F32 = float32x4_t;
  using U8 = uint8x16_t;
  using DwWeight = int8x16_t;
  using DwInput = int32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kPanelVectors = 4;
  static constexpr bool kSplits = false;
  static constexpr int64_t kLookupBytes = 16;
  static constexpr int kHalfLanes = 0;
  static constexpr bool kGathers = false;
  static constexpr bool kJoins = false;
  static constexpr bool kOrders = true;
  static constexpr bool kStaggers = false;
  static constexpr int kDwBytes = 16;
  static constexpr int kDwInputBytes = 16;
  // Depthwise kernels in registers: weights of that many columns times groups of rows; windows of three columns.
  static constexpr int kDwTaps = 14;
  static constexpr bool kDwColumns = true;

  static int32x4_t dot_us(int32x4_t acc, uint8x16_t u, int8x16_t s) {
#ifdef __ARM_FEATURE_MATMUL_INT8
    return vusdotq_s32(acc, u, s);
#else
    // sum u * s = sum u * (s + 128) - 128 * sum u
    const uint8x16_t shifted = veorq_u8(vreinterpretq_u8_s8(s), vdupq_n_u8(0x80));
    const uint32x4_t surplus = vshlq_n_u32(vdotq_u32(vdupq_n_u32(0), u, vdupq_n_u8(1)), 7);
    return vreinterpretq_s32_u32(vsubq_u32(vdotq_u32(vreinterpretq_u32_s32(acc), u, shifted), surplus));
#endif
  }

  // kLanes bytes.
  static I32 load_bytes(const uint8_t* p) {
    uint32_t four;
    __builtin_memcpy(&four, p, 4);
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
  }
  // Of values of 0 to 255.
  static void store_bytes(uint8_t* p, I32 v) {
    const uint16x4_t words = vmovn_u32(vreinterpretq_u32_s32(v));
    const uint32_t four = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(words, words))), 0);
    __builtin_memcpy(p, &four, 4);
  }
  static I32 max_i32(I32 a, I32 b) { return vmaxq_s32(a, b); }
  // x > y ? a : b.
  static F32 where_above(F32 x, F32 y, F32 a, F32 b) { return vbslq_f32(vcgtq_f32(x, y), a, b); }
  // Over the lanes; of floats none is NaN.
  static int32_t largest(I32 v) { return vmaxvq_s32(v); }
  static float largest(F32 v) { return vmaxvq_f32(v); }
  static int32_t sum(I32 v) { return vaddvq_s32(v); }
  static I32 load_i32(const int32_t* p) { return vld1q_s32(p); }
  static void store_i32(int32_t* p, I32 v) { vst1q_s32(p, v); }
  static I32 set_i32(int32_t x) { return vdupq_n_s32(x); }
  static I32 add_i32(I32 a, I32 b) { return vaddq_s32(a, b); }
  static I32 sub_i32(I32 a, I32 b) { return vsubq_s32(a, b); }
  static I32 mul_i32(I32 a, I32 b) { return vmulq_s32(a, b); }
  static F32 load_f32(const float* p) { return vld1q_f32(p); }
  static void store_f32(float* p, F32 v) { vst1q_f32(p, v); }
  static F32 set_f32(float x) { return vdupq_n_f32(x); }
  static F32 to_f32(I32 v) { return vcvtq_f32_s32(v); }
  static I32 bits(F32 v) { return vreinterpretq_s32_f32(v); }
  static F32 mul(F32 a, F32 b) { return vmulq_f32(a, b); }
  static F32 add(F32 a, F32 b) { return vaddq_f32(a, b); }
  static F32 sub(F32 a, F32 b) { return vsubq_f32(a, b); }
  static F32 div(F32 a, F32 b) { return vdivq_f32(a, b); }
  static F32 fma(F32 a, F32 b, F32 c) { return vfmaq_f32(c, a, b); }
  // The second operand where one is NaN, as on x86.
  static F32 min(F32 a, F32 b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static F32 max(F32 a, F32 b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static F32 max_0(F32 a) { return max(a, vdupq_n_f32(0.0f)); }
  // 2^n from the float n + 1.5 * 2^23, whose low bits are n.
  static F32 power_of_2(F32 shifted) {
    const I32 n = vsubq_s32(vreinterpretq_s32_f32(shifted), vdupq_n_s32(0x4B400000 - 127));
    return vreinterpretq_f32_s32(vshlq_n_s32(n, 23));
  }
  // x * 2^n, x and the product normal, for the float n + 1.5 * 2^23, by way of x's exponent.
  static F32 times_power_of_2(F32 x, F32 shifted) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), vshlq_n_s32(vreinterpretq_s32_f32(shifted), 23)));
  }
  static F32 round_f32(F32 v) { return vrndnq_f32(v); }
  static I32 round_i32(F32 v) { return vcvtnq_s32_f32(v); }  // half to even; saturates
  // Panel order is column order with four lanes.
  template <int NV>
  static void order(const I32 (&x)[NV], I32 (&y)[NV]) {
    for (int v = 0; v < NV; ++v) y[v] = x[v];
  }

  // Keeps v in a register, opaque to the optimiser.
  static void keep(I32& v) { __asm__ volatile("" : "+w"(v)); }

  static I32 broadcast_a(const uint8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return vdupq_n_s32(four);
  }
  static I32 dot(I32 acc, I32 a, I32 b) { return dot_us(acc, vreinterpretq_u8_s32(a), vreinterpretq_s8_s32(b)); }

  using GroupA = int8x16_t;
  using GroupB = uint8x16_t;
  static GroupA broadcast_group(const int8_t* p) {
    return vreinterpretq_s8_s32(broadcast_a(reinterpret_cast<const uint8_t*>(p)));
  }
  static GroupB group_bytes(const uint8_t* p) { return vld1q_u8(p); }
  static void group_nibbles(const uint8_t* p, GroupB& low, GroupB& high) {
    const uint8x16_t x = vld1q_u8(p);
    low = vandq_u8(x, vdupq_n_u8(0x0F));
    high = vshrq_n_u8(x, 4);
  }
  static I32 dot_group(I32 acc, GroupB b, GroupA a) { return dot_us(acc, b, a); }

  static DwWeight load_dw(const uint8_t* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
  static DwInput load_dw_input(const uint8_t* p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
  static void store_dw_input(uint8_t* p, I32 mixed) { vst1q_u8(p, vreinterpretq_u8_s32(mixed)); }
  static I32 dot_dw(I32 acc, DwInput x, DwWeight w) { return dot_us(acc, vreinterpretq_u8_s32(x), w); }
  static I32 dot_mixed(I32 acc, I32 x, DwWeight w) { return dot_dw(acc, x, w); }
  // Of 16 bytes at the place, those that `which` names: 0 where it is above 127.
  template <bool Run>
  static U8 spread(const uint8_t* p, const int32_t (&where)[1], U8 which) {
    return vqtbl1q_u8(vld1q_u8(p + where[0]), which);
  }
  static U8 or_u8(U8 a, U8 b) { return vorrq_u8(a, b); }
  static I32 words(U8 bytes) { return vreinterpretq_s32_u8(bytes); }
  static void interleave(const U8 (&t)[4], I32 (&out)[4]) {
    const uint16x8_t lo01 = vreinterpretq_u16_u8(vzip1q_u8(t[0], t[1])),
                     hi01 = vreinterpretq_u16_u8(vzip2q_u8(t[0], t[1]));
    const uint16x8_t lo23 = vreinterpretq_u16_u8(vzip1q_u8(t[2], t[3])),
                     hi23 = vreinterpretq_u16_u8(vzip2q_u8(t[2], t[3]));
    out[0] = vreinterpretq_s32_u16(vzip1q_u16(lo01, lo23));
    out[1] = vreinterpretq_s32_u16(vzip2q_u16(lo01, lo23));
    out[2] = vreinterpretq_s32_u16(vzip1q_u16(hi01, hi23));
    out[3] = vreinterpretq_s32_u16(vzip2q_u16(hi01, hi23));
  }

  template <int NV, bool Plain>
  static U8 narrow(const I32 (&q)[NV], int32_t zero_point, uint8_t lo, uint8_t hi) {
    const int16x8_t zp = vdupq_n_s16(static_cast<int16_t>(Plain ? 0 : zero_point));
    const int16x4_t none = vdup_n_s16(0);
    const int16x8_t first = vcombine_s16(vqmovn_s32(q[0]), NV > 1 ? vqmovn_s32(q[NV > 1 ? 1 : 0]) : none);
    int16x8_t second = vdupq_n_s16(0);
    if constexpr (NV > 2) second = vcombine_s16(vqmovn_s32(q[2]), NV > 3 ? vqmovn_s32(q[NV > 3 ? 3 : 2]) : none);
    const uint8x16_t bytes = vcombine_u8(vqmovun_s16(vqaddq_s16(first, zp)), vqmovun_s16(vqaddq_s16(second, zp)));
    return Plain ? bytes : vminq_u8(vmaxq_u8(bytes, vdupq_n_u8(lo)), vdupq_n_u8(hi));
  }
  template <int NV>
  static void byte_floats(U8 bytes, float zero_point, F32 (&f)[NV]) {
    const uint16x8_t lo = vmovl_u8(vget_low_u8(bytes)), hi = vmovl_u8(vget_high_u8(bytes));
    const uint32x4_t all[4] = {vmovl_u16(vget_low_u16(lo)), vmovl_u16(vget_high_u16(lo)), vmovl_u16(vget_low_u16(hi)),
                               vmovl_u16(vget_high_u16(hi))};
    const F32 zero = vdupq_n_f32(zero_point);
    for (int v = 0; v < NV; ++v) f[v] = vsubq_f32(vcvtq_f32_u32(all[v]), zero);
  }
  template <int NV>
  static void store_u8(uint8_t* p, U8 bytes, int count) {
    if (count == 16) {
      vst1q_u8(p, bytes);
      return;
    }
    uint8_t b[16];
    vst1q_u8(b, bytes);
    for (int i = 0; i < count; ++i) p[i] = b[i];
  }
  template <int NV>
  static U8 load_u8(const uint8_t* p, int count) {
    if (count == 16) return vld1q_u8(p);
    uint8_t b[16] = {};
    for (int i = 0; i < count; ++i) b[i] = p[i];
    return vld1q_u8(b);
  }
  static U8 max_u8(U8 a, U8 b) { return vmaxq_u8(a, b); }
  static U8 flip(U8 bytes, uint8_t mask) { return veorq_u8(bytes, vdupq_n_u8(mask)); }
  // `n` bytes, whole blocks: the table is in sixteen registers, of which an instruction looks at four.
  static void lookup_blocks(const uint8_t* x, int64_t n, const uint8_t* table, uint8_t* out) {
    const uint8x16x4_t quarters[4] = {vld1q_u8_x4(table), vld1q_u8_x4(table + 64), vld1q_u8_x4(table + 128),
                                      vld1q_u8_x4(table + 192)};
    for (int64_t i = 0; i < n; i += kLookupBytes) {
      uint8x16_t at = vld1q_u8(x + i), found = vqtbl4q_u8(quarters[0], at);
#pragma GCC unroll 3
      for (int q = 1; q < 4; ++q) {
        at = vsubq_u8(at, vdupq_n_u8(64));
        found = vqtbx4q_u8(found, quarters[q], at);
      }
      vst1q_u8(out + i, found);
    }
  }
  static U8 lookup(U8 bytes, const uint8_t* table) {
    uint8_t b[16];
    vst1q_u8(b, bytes);
    for (uint8_t& x : b) x = table[x];
    return vld1q_u8(b);
  }
};

}  // namespace
}  // namespace zeropoint
