// Long rows that are kept, of the sums whose sweeps are a few instructions: those of p_y and lse
// alone, and those with one clamped line.
#include "row_kernels.h"

namespace anl::cuda {
namespace {

template <class T, Dense D> void launch_for(const RowLossParam<float>& p, void* stream) {
  launch(cluster_row_kernel<T, true, D>, "cluster_row", grid_of(p.plan, p.args.shape, sizeof(T)),
         stream, p);
}

} // namespace

bool launch_common_rows(const RowLossArgs& args, const Plan& plan, void* stream) {
  if (args.type == Type::Float64)
    return false;
  const auto p = param_of<float>(args, plan);
  const Dense dense = dense_of(p.terms);
  if (dense == Dense::Any)
    return false;
  with_type(args.type, [&](auto storage) {
    using T = decltype(storage);
    if constexpr (sizeof(T) <= 4)
      dense == Dense::None ? launch_for<T, Dense::None>(p, stream)
                           : launch_for<T, Dense::ClampedLine>(p, stream);
  });
  return true;
}

} // namespace anl::cuda
