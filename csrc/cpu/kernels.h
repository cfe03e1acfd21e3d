// The kernels of one instruction set, as a library of their own: kernels_*.cpp include this file,
// and setup.py compiles each with its flags. The extension loads the best that the processor has.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "columns.h"
#include "entropy.h"
#include "rows.h"
#include "shards.h"
#include "softmax_backward.h"

namespace anl::cpu {
namespace {

// Rows up to this long go side by side in tiles even where their classes are neighbours: what is
// done once for a row would cost more than its classes.
constexpr int64_t short_row = 192;

// Split rows only when a thread has several pieces to do.
constexpr int64_t split_from = 1 << 15;

bool in_tiles(const Shape& shape, const Rows& logits) {
  const int64_t pos = shape.M == 1 ? logits.batch : logits.pos;
  return shape.K <= short_row || (logits.cls != 1 && pos == 1 && shape.K <= INT32_MAX);
}

// Long rows are written past the cache only where they are long enough that the incomplete lines
// at their ends do not matter. Tiles have few of those.
constexpr int64_t stream_row_bytes = int64_t(1) << 14;

template <class Args> Args for_long_rows(Args args) {
  const int64_t element = args.type == Type::Float64 ? 8 : args.type == Type::Float32 ? 4 : 2;
  if constexpr (requires { args.past_cache; })
    args.past_cache = args.past_cache && args.shape.K * element >= stream_row_bytes;
  return args;
}

// The job for the storage type of a call.
template <template <class> class Job_, class Args, class... More>
Job* typed(const Args& args, More... more) {
  switch (args.type) {
  case Type::Float64:
    return new Job_<double>(args, more...);
  case Type::Float32:
    return new Job_<float>(args, more...);
  case Type::BFloat16:
    return new Job_<BFloat16>(args, more...);
  case Type::Float16:
    return new Job_<Half>(args, more...);
  }
  return nullptr;
}

// That of rows in tiles or of long rows.
template <template <class> class Tiles_, template <class> class Rows_, class Args, class... More>
Job* for_layout(const Args& args, const Rows& read, More... more) {
  return in_tiles(args.shape, read) ? typed<Tiles_>(args, more...)
                                    : typed<Rows_>(for_long_rows(args), more...);
}

Job* row_loss(const RowLossArgs& args, int threads) {
  if (args.shape.rows() < threads && args.shape.K >= split_from)
    return for_layout<TileLossJob, SplitRowLossJob>(args, args.logits);
  return for_layout<TileLossJob, RowLossJob>(args, args.logits);
}

Job* row_grad(const RowGradArgs& args) {
  return for_layout<TileGradJob, RowGradJob>(args, args.logits);
}

Job* shard_partials(const ShardArgs& args) {
  return for_layout<ShardPartialsTiles, ShardPartialsRows>(args, args.logits);
}

Job* shard_sums(const ShardArgs& args) {
  return for_layout<ShardSumsTiles, ShardSumsRows>(args, args.logits);
}

Job* shard_finish(const ShardArgs& args) {
  if (args.type == Type::Float64)
    return new ShardFinishTiles<double>(args);
  return new ShardFinishTiles<float>(args);
}

Job* softmax_backward(const SoftmaxBackwardArgs& args) {
  return for_layout<SoftmaxBackwardTiles, SoftmaxBackwardRows>(args, args.probs);
}

Job* column_sums(const ColumnSumsArgs& args, int threads) {
  return for_layout<ColumnSumsTiles, ColumnSumsRows>(args, args.logits, threads);
}

Job* column_grad(const ColumnGradArgs& args) {
  return for_layout<ColumnGradTiles, ColumnGradRows>(args, args.logits);
}

template <class A>
void entropy_of(const void* sums, int64_t K, double min_prob, void* value, void* slopes) {
  entropy(static_cast<const A*>(sums), K, min_prob, static_cast<A*>(value),
          static_cast<A*>(slopes));
}

void entropy(Type type, const void* sums, int64_t K, double min_prob, void* value, void* slopes) {
  (type == Type::Float64 ? entropy_of<double> : entropy_of<float>)(sums, K, min_prob, value,
                                                                   slopes);
}

template <class A> V<A> call(Elementary function, V<A> x) {
  using M = Math<V<A>>;
  switch (function) {
  case Elementary::Exp:
    return M::exp(x);
  case Elementary::ExpNonpositive:
    return exp_nonpositive<A>(x);
  case Elementary::Expm1:
    return M::expm1(x);
  case Elementary::Log:
    return M::log(x);
  case Elementary::Log1p:
    return M::log1p(x);
  }
  return x;
}

template <class A> void call_all(Elementary function, const void* x, void* y, int64_t count) {
  for (int64_t i = 0; i < count; i += lanes<A>) {
    A values[lanes<A>] = {};
    const int64_t left = count - i < lanes<A> ? count - i : lanes<A>;
    memcpy(values, static_cast<const A*>(x) + i, left * sizeof(A));
    store(values, call<A>(function, load(values)));
    memcpy(static_cast<A*>(y) + i, values, left * sizeof(A));
  }
}

void elementary(Elementary function, Type type, const void* x, void* y, int64_t count) {
  (type == Type::Float64 ? call_all<double> : call_all<float>)(function, x, y, count);
}

const Kernels kernels = {
    row_loss,       row_grad,
    shard_partials, shard_sums,
    shard_finish,   softmax_backward,
    column_sums,    column_grad,
    entropy,        sizeof functor_tables<float> / sizeof functor_tables<float>[0],
    elementary};

PyModuleDef module = {PyModuleDef_HEAD_INIT,
                      "anl_cpu_kernels",
                      nullptr,
                      -1,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr};

} // namespace
} // namespace anl::cpu

#define ANL_JOIN_(a, b) a##b
#define ANL_JOIN(a, b) ANL_JOIN_(a, b)

// `kernels`: the address of the table.
PyMODINIT_FUNC ANL_JOIN(PyInit_, ANL_MODULE)() {
  using namespace anl::cpu;
  PyObject* self = PyModule_Create(&module);
  if (self)
    PyModule_AddObject(self, "kernels",
                       PyCapsule_New(const_cast<Kernels*>(&kernels), "anl_cpu_kernels", nullptr));
  return self;
}
