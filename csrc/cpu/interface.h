// What the operators (ops.cpp, compiled once) and the kernels (compiled for each instruction set)
// say to each other: no PyTorch, no SIMD, no losses by name.
#pragma once

#include <stdint.h>

namespace anl::cpu {

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

// One term of a weighted sum: its functor's place in the list of terms.h.
struct TermSpec {
  int functor;
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
  bool stream; // outputs of the logits' shape need not be in the cache afterwards
};

struct RowLossArgs : RowArgs {
  const void* term_weights; // (T,), in the place of the weights in terms, or null
  Rows probs;
  void *row_losses, *stats, *term_losses, *lse, *p_y;
  int64_t* argmax;
};

struct RowGradArgs : RowArgs {
  const void* stats;
};

struct SoftmaxBackwardArgs {
  Type type;
  Shape shape;
  Rows upstream, probs, grad;
  bool stream;
};

// Work in phases of independent units. Results do not depend on how units are shared out.
class Job {
public:
  virtual ~Job() = default;
  virtual int phases() const { return 1; }
  virtual int64_t units(int phase) const = 0;
  virtual int64_t elements_of_unit(int phase) const = 0; // to weigh a unit against a thread's start
  virtual void run(int phase, int64_t begin, int64_t end) = 0;
};

enum class Elementary { Exp, ExpNonpositive, Expm1, Log, Log1p };

// What a kernel library exports. The caller owns the jobs.
struct Kernels {
  Job* (*row_loss)(const RowLossArgs&, int threads);
  Job* (*row_grad)(const RowGradArgs&);
  Job* (*softmax_backward)(const SoftmaxBackwardArgs&);
  int num_functors;
  void (*elementary)(Elementary, Type, const void* x, void* y, int64_t count); // for tests
};

} // namespace anl::cpu
