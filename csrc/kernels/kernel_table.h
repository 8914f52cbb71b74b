// What an instruction set has to provide: one table of single-threaded functions, and the plain
// structs that are all a kernel ever sees. Above this file code knows tensors; below it, pointers.
//
// Byte convention: every 8-bit activation is handled as uint8. Signed int8 data is the same byte
// with its top bit flipped (q + 128), so the operator layer flips that bit on the way in and gives
// the kernel `out_xor = 0x80` on the way out; no kernel exists twice for signedness.
#pragma once
#include <cstddef>
#include <cstdint>

namespace zeropoint {

constexpr int kMaxRows = 6;     // rows of the GEMM register tile
constexpr int64_t kPiece = 32;  // bytes that are copied at a time, at most, where rows of A are put together

constexpr int64_t kWinogradTile = 2, kWinogradPoints = 16;  // output pixels along a side of a tile; 4x4 products

// out = clamp(round_half_even(float(acc) * mult[c] + bias[c]) + zero_point), then optionally the
// residual addition and the 256-entry table, in that order. Arrays are in panel order (pack.h).
// Where values are cut off before they are rounded to integers, which saturate anyway.
constexpr float kLargestRounded = 2097152.0f;

struct Epilogue {
  enum class Output : int32_t { kU8, kF32, kI32, kRowF32 };
  Output output = Output::kU8;
  const int32_t* init = nullptr;      // accumulators start here: (a_offset - x_zero_point) * column sum; kRowF32: 0
  const int32_t* row_init = nullptr;  // added to that by row; null: 0
  const float* mult = nullptr;
  const float* bias = nullptr;
  int32_t zero_point = 0;  // all of zero_point, lo, hi in the uint8 domain, 0..255
  uint8_t lo = 0, hi = 255;
  // Residual: q = clamp(rhe(float(q - zero_point) * sum_mult + float(r - r_zero_point) * r_mult)
  //                     + sum_zero_point).
  const uint8_t* residual = nullptr;  // may be the output: a byte is read before it is written, and written once
  int64_t residual_stride = 0;        // bytes between rows
  uint8_t residual_xor = 0;
  float sum_mult = 0, residual_mult = 0, residual_zero_point = 0;
  float least = 0, most = 0;  // lo and hi less zero_point: what q may be before the sum
  int32_t sum_zero_point = 0;
  uint8_t sum_lo = 0, sum_hi = 255;
  const uint8_t* table = nullptr;
  uint8_t out_xor = 0;
  bool bounded = false;  // nothing that is rounded can exceed kLargestRounded
  bool plain = false;    // and the bytes are what saturation makes of it: zero point 0, 0 to 255, no flip
  // kRowF32: (float(acc - row_zero_point[m] * column_sums[c]) * row_scale[m]) * column_scale[c] + column_bias[c],
  // arrays by row and by column.
  const float* row_scale = nullptr;
  const int32_t* row_zero_point = nullptr;
  const int32_t* column_sums = nullptr;
  const float* column_scale = nullptr;
  const float* column_bias = nullptr;  // null: none
  bool relu = false;
};

// NDHWC geometry of an implicit GEMM: row m is the output pixel (n, od, oh, ow), tap t the triple (kd, kh, kw). Images
// have a depth of 1; only the implicit GEMM reads the depth's fields.
struct ConvGeometry {
  int64_t in_h, in_w, out_h, out_w, kernel_w;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t row_stride, image_stride;  // bytes between input rows, images
  int64_t in_d = 1, out_d = 1, kernel_h = 1, stride_d = 1, pad_d = 0, dilation_d = 1;
  int64_t plane_stride = 0;  // bytes between the planes of a volume
};

// C[m, n] = sum over taps and kc of A(m, tap)[k] * B[tap][k][n]: matrix product and convolution.
struct IgemmParams {
  const uint8_t* a;
  int64_t a_stride;          // bytes between rows of A, or between input pixels
  const ConvGeometry* conv;  // null: A is a plain matrix
  const uint8_t* pad_row;    // kc bytes of the input's zero point, read for padded taps
  int64_t unique_taps;       // taps of the geometry
  int64_t taps;              // taps of B: unique_taps, or twice that (pack.h, wide weights)
  int64_t kc;                // bytes of A per tap; A is readable up to kc rounded up to 4
  // Not 0: the one tap's bytes are this many rows of the kernel, kc / pieces each, which are put side by side before
  // they are multiplied. The geometry's taps are those rows, without padding; A is readable kPiece bytes past its end.
  int64_t pieces;
  const uint8_t* b;  // packed panels
  int64_t n;         // columns
  void* out;
  int64_t out_stride;  // elements between rows of the output
  // Where padded taps add nothing (the input's zero point is byte 0), pixels may be taken in groups that share their
  // padded taps, which are then skipped. `order`: the pixels of an image, group by group; `tiles`: where in it each
  // register tile begins, tile_count + 1 values. The range of rows that igemm gets is then one of tiles, image after
  // image.
  const int32_t* order;  // null: all pixels, row after row
  const int32_t* tiles;
  int64_t tile_count;
  Epilogue epilogue;
};

struct DepthwiseParams {
  const uint8_t* x;
  ConvGeometry conv;
  int64_t channels, kernel_h;
  int64_t repeats;         // 1, or 2 for wide weights
  const uint8_t* pad_row;  // channels bytes of the input's zero point
  const uint8_t* weight;   // packed (pack.h)
  void* out;               // NHWC
  Epilogue epilogue;
};

// Of a piece of kSmallGroups' words (pack.h) in all `lanes`: an int32 for four of them, a byte for each of theirs.
constexpr int64_t spread_piece_bytes(int64_t lanes) { return 5 * lanes; }

// Convolution in groups of few channels or filters (pack.h, kSmallGroups).
struct SmallGroupsParams {
  const uint8_t* x;  // NDHWC; 16 bytes are readable from any pixel's start on, and from pad_row's
  ConvGeometry conv;
  int64_t channels, filters;              // of the input, of the output
  int64_t group_channels, group_filters;  // of a group
  int64_t kernel_rows;                    // of all its planes
  int64_t word_rows, row_words;           // pack.h
  int64_t pieces, repeats;
  bool broadcasts;         // the lanes of a register have one group
  const uint8_t* pad_row;  // channels bytes of the input's zero point
  const uint8_t *weight, *spread;
  void* out;  // NDHWC
  Epilogue epilogue;
};

struct PoolParams {
  const uint8_t* x;
  ConvGeometry conv;
  int64_t channels, kernel_h;
  uint8_t* out;
  bool count_include_pad;
  int64_t divisor;                     // 0: number of taps counted
  float factor;                        // averages: of the sum; 0: one over the divisor
  int32_t zero_point, out_zero_point;  // averages
  uint8_t in_xor, out_xor, lo, hi;     // max_pool has in_xor alone: bytes go out as they came in
};

struct BinaryParams {
  const uint8_t* a;
  const uint8_t* b;
  uint8_t* out;
  int32_t a_zero_point, b_zero_point, out_zero_point;  // uint8 domain
  float a_mult, b_mult;                                // mul uses a_mult alone
  bool bounded;                                        // nothing that is rounded can exceed kLargestRounded
  uint8_t a_xor, b_xor, out_xor, lo, hi;
  const float* b_floats;  // null, or what panel_floats makes of b, instead of b
};

// Norms of float32 (norm.h); inv_scale, zero_point (uint8 domain) and out_xor are those of a result in 8 bits.
struct NormParams {
  int64_t n;
  const float *weight, *bias;  // [n] or null
  float eps;
  bool centered;
  float inv_scale;
  int32_t zero_point;
  uint8_t out_xor;
};

struct NormalizeParams {
  int32_t x_zero_point, out_zero_point;  // uint8 domain
  uint8_t x_xor, out_xor, lo, hi;
};

// What masks add to attention's scores ends at kLargestMask, so that sums stay finite; keys at or below kLeastMask are
// not looked at and have kMasked, which no score brings near the others.
constexpr float kLargestMask = 1e30f, kLeastMask = -1e29f, kMasked = -1e30f;

// One query over keys and values of float32 that lie in two pieces, as a cache and what is new.
struct AttendParams {
  struct Piece {
    const float *keys, *values;
    int64_t key_stride, value_stride, n;  // floats between rows; rows
  };
  Piece pieces[2];
  int64_t d, e;  // features of a key, of a value
  const float* query;
  float factor;
  const float* mask;  // null, or one value per key, padded with kMasked to a multiple of the lanes
  float* scores;      // room for all keys, rounded up to the lanes
  float* out;
};

// Rows of quantized embeddings, whose sum or maximum is taken: as embedding_row's, each with its scale and zero point.
struct BagParams {
  const uint8_t* data;
  int64_t width, features;  // bytes of a row; its values
  bool four_bits, maximum;
  const float *scale, *zero_point;  // by row of `data`
  const int64_t* rows;
  const float* weights;  // by place in `rows`; null: 1
  int64_t count;         // of `rows`
  float* out;
};

struct SoftmaxParams {
  const int32_t* powers;  // rhe(exp(-scale of x * d) * 2^23) at 255 - d, for distances d of 0..255 from the largest;
                          // then 255 zeros
  double scale;           // of the output
  int32_t out_zero_point;
  uint8_t x_xor, out_xor, lo, hi;
};

// Below every sum of attention's, and no further from one than an int32 can hold.
constexpr int32_t kNoScore = -(int32_t{1} << 30);

// A matrix [k, n] of bytes to be packed at run time; zero_point is that of q - 128.
struct ActivationView {
  const uint8_t* data;
  int64_t k, n, stride_k, stride_n;
  uint8_t flip;  // takes the bytes to the uint8 domain
  int32_t zero_point;
};

// Float activations times 8- or 4-bit weights whose qparams change along K (grouped.h, pack/grouped_pack.h). Row m,
// term t of A are the bytes a[(m * terms + t) * k_padded + ...]; a row's integer is 128 * first + second term where
// there are two.
struct GroupedParams {
  const int8_t* a;
  const float* a_scale;  // [m][groups]
  const int32_t* a_sum;  // [m][groups], sums of the row's integers
  int64_t k_padded;      // K rounded up to 8; the padding is 0
  int64_t group_size, groups;
  int terms;          // 1 or 2
  int bits;           // of a weight: 8 or 4
  int32_t offset;     // weights are stored plus this
  bool group_scales;  // each group has a scale per column, else column_scale
  bool zero_points;   // each group has a zero point per column, else 0
  const uint8_t* b;   // panels
  const float* column_scale;
  const float* column_bias;  // null: none
  bool relu;
  int64_t first_column, n;  // `out` begins with that column; n: one past the last
  float* out;
  int64_t out_stride;
};

struct KernelTable {
  const char* name;
  int32_t lanes;          // int32 lanes of a vector
  int32_t panel_vectors;  // vectors across a full panel of packed B
  int32_t half_lanes;     // lanes of the half-width vectors for a short last block of channels, 0: none
  bool splits;            // igemm copies A (split.h): it takes no IgemmParams::order, and one long tap is best
  int32_t a_offset;       // igemm multiplies A less this, 0 or 128
  size_t (*igemm_scratch)(const IgemmParams&);
  void (*igemm)(const IgemmParams&, int64_t m0, int64_t m1, int64_t panel0, int64_t panel1, uint8_t* scratch);
  // Weights of PackKind::kWinograd, over tiles of 2x2 output pixels; null: the set multiplies bytes faster than that.
  size_t (*winograd_scratch)(const IgemmParams&);
  void (*winograd)(const IgemmParams&, int64_t tile0, int64_t tile1, int64_t panel0, int64_t panel1, uint8_t* scratch);
  size_t (*depthwise_scratch)(const DepthwiseParams&);
  void (*depthwise)(const DepthwiseParams&, int64_t row0, int64_t row1, uint8_t* scratch);
  size_t (*small_groups_scratch)(const SmallGroupsParams&);
  // Rows are (image, output plane, output row).
  void (*small_groups)(const SmallGroupsParams&, int64_t row0, int64_t row1, uint8_t* scratch);
  void (*max_pool)(const PoolParams&, int64_t row0, int64_t row1);
  void (*avg_pool)(const PoolParams&, int64_t row0, int64_t row1);
  void (*quantize_u8)(const float* x, int64_t n, float inv_scale, int32_t zero_point, uint8_t out_xor, uint8_t* out);
  void (*quantize_i32)(const float* x, int64_t n, float inv_scale, int32_t zero_point, int32_t* out);
  void (*quantize_channel)(const float* x, int64_t outer, int64_t channels, int64_t inner, const float* inv_scale,
                           const int32_t* zero_point, int32_t lo, int32_t hi, int32_t* out);
  void (*dequantize_u8)(const uint8_t* x, int64_t n, float scale, int32_t zero_point, uint8_t x_xor, float* out);
  void (*dequantize_i32)(const int32_t* x, int64_t n, float scale, int32_t zero_point, float* out);
  void (*requantize)(const int32_t* acc, int64_t n, float mult, int32_t zero_point, uint8_t out_xor, uint8_t* out);
  void (*panel_floats)(const uint8_t* q, int64_t n, uint8_t flip, int32_t zero_point, float* out);
  void (*add)(const BinaryParams&, int64_t n);
  void (*mul)(const BinaryParams&, int64_t n);
  void (*add_f32)(const float* a, const float* b, int64_t n, bool subtract, float* out);
  void (*rotate_row)(const float* x, const float* cos, const float* sin, int64_t n, float* out);
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* out);
  void (*lookup)(const uint8_t* x, int64_t n, const uint8_t* table, uint8_t* out);
  void (*interleave_planes)(const uint8_t* x, int64_t plane, int64_t step, int64_t channels, int64_t n, uint8_t* out);
  void (*mix_pixels)(const uint8_t* q0, const uint8_t* q1, int64_t channels, float weight, uint8_t flip, float* out);
  void (*mix_rows)(const float* a, const float* b, int64_t n, float weight, uint8_t flip, uint8_t* out);
  void (*embedding_row)(const uint8_t* q, int64_t n, bool four_bits, float scale, float zero_point, float* out);
  void (*embedding_bag)(const BagParams&);
  size_t (*grouped_scratch)(const GroupedParams&);
  void (*grouped)(const GroupedParams&, int64_t m0, int64_t m1, int64_t panel0, int64_t panel1, uint8_t* scratch);
  // One group of a row: integers (two terms where `low` is not null), their sum, their scale; n real, the rest 0.
  void (*quantize_group)(const float* x, int64_t n, int64_t padded, int8_t* high, int8_t* low, float* scale,
                         int32_t* sum);
  void (*row_sums)(const uint8_t* x, int64_t n, uint8_t x_xor, int64_t* sum, int64_t* squares);
  void (*normalize_row)(const NormalizeParams&, const uint8_t* x, int64_t n, float mean, float rstd,
                        const float* weight, const float* bias, bool single, uint8_t* out);
  void (*norm_row)(const NormParams&, const float* x, const float* residual, float* sum, float* norm, uint8_t* q);
  void (*softmax_table)(const SoftmaxParams&, const uint8_t* x, int64_t n, uint8_t* table);
  int32_t (*attention_row)(int32_t* s, int64_t n, float scale, const float* mask, uint8_t* p);
  void (*attend_row)(const AttendParams&);
  void (*pack_activation)(const ActivationView&, int32_t a_zero_point, uint8_t* out, int32_t* init);
  void (*row_range)(const float* x, int64_t n, float* lo, float* hi);
  void (*lstm_gates)(const float* from_input, const float* from_state, int64_t hidden, int64_t count, float* h,
                     float* c);
  void (*gru_gates)(const float* from_input, const float* from_state, int64_t hidden, int64_t count, float* h);
  void (*rnn_gates)(const float* from_input, const float* from_state, int64_t count, bool relu, float* h);
  int32_t (*dot_peak)(int64_t iterations);  // for benchmarks: dot_peak_ops additions and multiplications each
  int64_t dot_peak_ops;

  int64_t panel_columns() const { return static_cast<int64_t>(lanes) * panel_vectors; }
  int64_t panels(int64_t columns) const { return (columns + panel_columns() - 1) / panel_columns(); }
};

extern const KernelTable kScalarTable;
#ifdef ZEROPOINT_X86
extern const KernelTable kAvx2Table;
extern const KernelTable kAvxVnniTable;
extern const KernelTable kAvx512VnniTable;
// Matrix products of amx, whose table is otherwise that of avx512vnni.
size_t igemm_scratch_amx(const IgemmParams& p);
void igemm_amx(const IgemmParams& p, int64_t m0, int64_t m1, int64_t panel0, int64_t panel1, uint8_t* scratch);
// Byte table lookup in registers; used by avx512vnni where the CPU has VBMI.
void lookup_avx512vbmi(const uint8_t* x, int64_t n, const uint8_t* table, uint8_t* out);
#endif
#ifdef ZEROPOINT_ARM64
extern const KernelTable kNeonDotprodTable;
extern const KernelTable kNeonI8mmTable;
#endif

}  // namespace zeropoint
