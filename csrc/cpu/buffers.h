// Memory for large gradients.
//
// A fresh buffer costs more in page faults than the kernel that fills it (125 MB: 50 ms against 9),
// and the C library gives large ones back to the system on every release. So released buffers are
// kept for the next call. They are marked as free to take (MADV_FREE): the system reclaims them
// when it needs memory, and only then does the next call pay again. Huge pages make the first touch
// cheaper still.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace anl::cpu {

// An uninitialised tensor; from the cache if it is large.
at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides,
                         const at::TensorOptions& options);

struct CacheFacts {
  int64_t held_bytes, limit_bytes;
};
CacheFacts cache_facts();
// 0 turns the cache off.
void set_cache_limit(int64_t bytes);
void empty_cache();

} // namespace anl::cpu
