// The gradient of rows with neighbouring classes out of what was saved of rows: every block writes
// a part of a row.
#include "kernels.h"

namespace anl::cuda {
namespace {

constexpr int grad_threads = 256;

template <class T>
ANL_KERNEL(grad_threads, sizeof(T) == 8 ? 2 : 3)
grad_rows_kernel(ANL_PARAM RowGradParam<Accumulator<T>> p) {
  using A = Accumulator<T>;
  const RowGradArgs& args = p.args;
  const int64_t n = block_x();
  const int K = int(args.shape.K);
  const T* z = row_of<T>(args.logits, args.shape, n);
  const Label<A> label = label_of<T>(args, n, z, true);
  const int each = int(p.plan.part_bytes / 16), first = block_y() * each;
  const int last = smaller_of(first + each, Vectors<T>::count(z, K));
  const Streamed<T> source(z, K, label.y, first, last, thread(), threads());
  write_saved<T>(p, n, label, source, sink_of<T>(args.grad, args.shape, n));
}

} // namespace

void launch_grad_rows(const RowGradArgs& args, const Rows& probs, const Plan& plan, void* stream) {
  with_type(args.type, [&](auto storage) {
    using T = decltype(storage);
    using A = Accumulator<T>;
    const RowGradParam<A> p = {args, probs, plan, terms_of<A>(args)};
    const int64_t bytes = row_bytes(args.shape.K, sizeof(T));
    const int64_t vectors = std::min(bytes, plan.part_bytes) / 16;
    const Grid grid = {args.shape.rows(), int(parts_of_row(plan, args.shape, sizeof(T))),
                       threads_for(vectors, grad_threads)};
    launch(grad_rows_kernel<T>, "grad_rows", grid, stream, p);
  });
}

} // namespace anl::cuda
