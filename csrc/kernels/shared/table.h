// Fills a KernelTable from the shared kernels and a vocabulary `V`.
#pragma once
#include "attention.h"
#include "binary.h"
#include "depthwise.h"
#include "dynamic.h"
#include "elementwise.h"
#include "embedding.h"
#include "grouped.h"
#include "igemm.h"
#include "norm.h"
#include "pack_activation.h"
#include "peak.h"
#include "pool.h"
#include "resample.h"
#include "rows.h"
#include "small_groups.h"
#include "split.h"
#include "winograd.h"

namespace zeropoint {
namespace {

template <class V>
constexpr KernelTable make_table(const char* name) {
  KernelTable table = {
      .name = name,
      .lanes = V::kLanes,
      .panel_vectors = V::kPanelVectors,
      .half_lanes = V::kHalfLanes,
      .splits = V::kSplits,
      .a_offset = kAOffset<V>,
      .igemm_scratch = nullptr,
      .igemm = nullptr,
      .winograd_scratch = nullptr,
      .winograd = nullptr,
      .depthwise_scratch = depthwise_scratch<V>,
      .depthwise = depthwise<V>,
      .small_groups_scratch = small_groups_scratch<V>,
      .small_groups = small_groups<V>,
      .max_pool = max_pool<V>,
      .avg_pool = avg_pool<V>,
      .quantize_u8 = quantize_u8,
      .quantize_i32 = quantize_i32,
      .quantize_channel = quantize_channel,
      .dequantize_u8 = dequantize_u8,
      .dequantize_i32 = dequantize_i32,
      .requantize = requantize,
      .panel_floats = panel_floats<V>,
      .add = add<V>,
      .mul = mul<V>,
      .add_f32 = add_f32,
      .rotate_row = rotate_row,
      .silu_mul = silu_mul<V>,
      .lookup = lookup<V>,
      .interleave_planes = interleave_planes,
      .mix_pixels = mix_pixels,
      .mix_rows = mix_rows,
      .embedding_row = embedding_row,
      .embedding_bag = embedding_bag<V>,
      .grouped_scratch = grouped_scratch<V>,
      .grouped = grouped<V>,
      .quantize_group = quantize_group<V>,
      .row_sums = row_sums,
      .normalize_row = normalize_row,
      .norm_row = norm_row<V>,
      .softmax_table = softmax_table,
      .attention_row = attention_row<V>,
      .attend_row = attend_row<V>,
      .pack_activation = pack_activation<V>,
      .row_range = row_range<V>,
      .lstm_gates = lstm_gates<V>,
      .gru_gates = gru_gates<V>,
      .rnn_gates = rnn_gates<V>,
      .dot_peak = dot_peak<V>,
      .dot_peak_ops = int64_t{2} * kPeakChains * V::kLanes * 4,
  };
  if constexpr (V::kSplits) {
    table.igemm_scratch = split_scratch<V>;
    table.igemm = split_igemm<V>;
    table.winograd_scratch = winograd_scratch<V>;
    table.winograd = winograd<V>;
  } else {
    table.igemm_scratch = igemm_scratch;
    table.igemm = igemm<V>;
  }
  return table;
}

}  // namespace
}  // namespace zeropoint
