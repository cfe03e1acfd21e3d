// What the operators (ops.cpp, compiled once) and the kernels (compiled for each instruction set)
// say to each other: no PyTorch, no SIMD.
#pragma once

#include "../call.h"

namespace anl::cpu {

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
  Job* (*shard_partials)(const ShardArgs&);
  Job* (*shard_sums)(const ShardArgs&);
  Job* (*shard_finish)(const ShardArgs&);
  Job* (*softmax_backward)(const SoftmaxBackwardArgs&);
  Job* (*column_sums)(const ColumnSumsArgs&, int threads);
  Job* (*column_grad)(const ColumnGradArgs&);
  void (*entropy)(Type, const void* sums, int64_t K, double min_prob, void* value, void* slopes);
  int num_functors;
  void (*elementary)(Elementary, Type, const void* x, void* y, int64_t count); // for tests
};

} // namespace anl::cpu
