// What an operator says to the kernels, on a CPU or a GPU: no PyTorch, no losses by name.
#pragma once

#include <stdint.h>

namespace anl {

enum class Type { Float64, Float32, BFloat16, Float16 };

// Rows of a (B, K, M) view: row b * M + m has its class k at data[b * batch + k * cls + m * pos].
struct Rows {
  void* data;
  int64_t batch, cls, pos;
};

struct Shape {
  int64_t B, K, M;
  int64_t rows() const { return B * M; }
};

// One term of a weighted sum: its functor's place in the list of terms.h, and whether its slopes
// are multiplied by its row's denominator.
struct TermSpec {
  int functor;
  bool balanced;
  double weight, scalars[3];
};

// Per-row tensors are float64 for float64 logits, else float32; null where they are not wanted.
struct RowArgs {
  Type type;
  Shape shape;
  Rows logits, grad;
  const void* target; // null: no row has one
  bool target_is_int32;
  int64_t ignore_index;
  const void* row_scale;
  int64_t scale_stride; // 0: one number for all rows
  const TermSpec* terms;
  int num_terms;
  bool past_cache; // CPU: outputs of the logits' shape need not be in the cache afterwards
};

// Numbers of a row that row_loss may return, with their type (void: the accumulator's) and, if
// there are several, how many: the last fields of RowOutputs in anl_kernels/interface.py, in order.
#define ANL_FOR_EACH_ROW_NUMBER(X)                                                                 \
  X(void, row_losses, )                                                                            \
  X(void, saved, num_saved + T)                                                                    \
  X(void, term_losses, T)                                                                          \
  X(void, lse, )                                                                                   \
  X(void, p_y, )                                                                                   \
  X(int64_t, argmax, )                                                                             \
  X(void, denominators, T)                                                                         \
  X(void, term_slopes, 2 * T)

struct RowLossArgs : RowArgs {
  const void* term_weights; // (T,), in the place of the weights in terms, or null
  Rows probs;
#define ANL_POINTER(type, name, columns) type* name;
  ANL_FOR_EACH_ROW_NUMBER(ANL_POINTER)
#undef ANL_POINTER
};

struct RowGradArgs : RowArgs {
  const void* saved;
};

// Numbers of a row that shards exchange before its lse is known: m, mass and total of the others,
// their count, z_y (Kernels.shard_partials).
constexpr int num_partials = 5;

// A row_loss in three calls, for rows of which each shard has some classes: partials, sums,
// heads. A label that is no class is in another shard.
struct ShardArgs : RowLossArgs {
  void* partials; // (N, num_partials): a result of the first call; of whole rows in the others
  void* sums;     // (N, dense terms, 2): a result of the second, of whole rows in the third
  bool aux;       // ignored rows are read
};

struct SoftmaxBackwardArgs {
  Type type;
  Shape shape;
  Rows upstream, probs, grad;
  bool past_cache;
};

// Terms over the columns of a batch: ColumnKernels in anl_kernels/interface.py.
struct ColumnArgs {
  Type type;
  Shape shape;
  Rows logits;
  const bool* counted; // null: every row counts
  double low, high;
  void* lse_parts; // (N, num_lse_parts)
};
constexpr int num_lse_parts = 2; // m, log_s

struct ColumnSumsArgs : ColumnArgs {
  void* sums; // (K,)
};

struct ColumnGradArgs : ColumnArgs {
  Rows grad;
  const void *slopes, *scale; // (K,); one number
  bool accumulate;
  bool past_cache;
};

} // namespace anl
