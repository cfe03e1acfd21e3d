// The operators that a library of kernels registers, the CPU's and the CUDA kernels' alike;
// anl_kernels/backends/compiled.py calls them.
#pragma once

#include <torch/library.h>

namespace anl {

inline void define_operators(torch::Library& library) {
  library.def("row_loss(Tensor logits, Tensor target, Tensor row_scale, Tensor? term_weights, "
              "int[] functors, float[] numbers, int ignore_index, bool reduce, bool write_grad, "
              "bool inplace, bool write_saved, bool aux, bool probs) -> "
              "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def("row_grad_into(Tensor grad, Tensor logits, Tensor target, Tensor row_scale, "
              "Tensor saved, int[] functors, float[] numbers, int ignore_index) -> ()");
  library.def("shard_partials(Tensor logits, Tensor target, int ignore_index, bool aux) -> "
              "(Tensor, Tensor)");
  library.def("shard_sums(Tensor logits, Tensor target, Tensor partials, int[] functors, "
              "float[] numbers, int ignore_index, bool aux) -> Tensor");
  library.def("shard_finish(Tensor partials, Tensor sums, Tensor target, Tensor? term_weights, "
              "int[] functors, float[] numbers, int ignore_index, bool write_saved, bool aux) -> "
              "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def("softmax(Tensor logits) -> Tensor");
  library.def("softmax_backward(Tensor upstream, Tensor probs) -> Tensor");
  library.def("column_sums(Tensor logits, Tensor? counted, float low, float high) -> "
              "(Tensor, Tensor)");
  library.def("column_grad(Tensor grad, Tensor logits, Tensor? counted, Tensor partials, "
              "Tensor slopes, Tensor scale, float low, float high, bool accumulate) -> ()");
  library.def("empty_like_rows(Tensor logits) -> Tensor");
  library.def("scale_(Tensor(a!) tensor, Tensor factor) -> ()");
}

} // namespace anl
