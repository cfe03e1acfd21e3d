// Multiplies a tensor by one number, unless it is 1: known on the device alone.
#include "kernels.h"

namespace anl::cuda {
namespace {

constexpr int scale_threads = 256;
// Blocks that share all there is: their return, when the number is 1, costs microseconds at any
// size, and they suffice to keep the memory busy.
constexpr int blocks_of_processor = 8;

template <class A> struct ScaleParam {
  void* data;
  int64_t count;
  const A* factor;
};

// Elements before the first multiple of 16 bytes.
template <class T> ANL_DEVICE int64_t first_aligned(const T* data, int64_t count) {
  const int64_t head = (width<T> - misaligned(data)) % width<T>;
  return head < count ? head : count;
}

template <class T>
ANL_KERNEL(scale_threads, 4)
scale_kernel(ANL_PARAM ScaleParam<Accumulator<T>> p) {
  using A = Accumulator<T>;
  const A factor = *p.factor;
  if (factor == 1)
    return;
  T* const data = static_cast<T*>(p.data);
  const int64_t step = blocks_x() * threads();
  const int64_t head = first_aligned(data, p.count);
  const int64_t vectors = (p.count - head) / width<T>;
  const int64_t me = block_x() * threads() + thread();
  for (int64_t v = me; v < vectors; v += step) {
    A values[width<T>];
    unpack<T>(load16(data + head + v * width<T>), values);
    for (A& value : values)
      value *= factor;
    store16(data + head + v * width<T>, pack<T>(values));
  }
  // What is before and after the whole vectors is less than two of them.
  const int64_t rest = p.count - vectors * width<T>;
  if (me < rest) {
    T* const at = data + (me < head ? me : me + vectors * width<T>);
    *at = narrow<T>(A(widen(*at)) * factor);
  }
}

} // namespace

void scale(Type type, void* data, int64_t count, const void* factor, const Place& place) {
  const Device device = describe_device(place.device);
  with_type(type, [&](auto storage) {
    using T = decltype(storage);
    using A = Accumulator<T>;
    const int64_t blocks = std::min<int64_t>(ceil_div(count, scale_threads * width<T>),
                                             int64_t(blocks_of_processor) * device.processors);
    const ScaleParam<A> p = {data, count, static_cast<const A*>(factor)};
    launch(scale_kernel<T>, "scale", {blocks, 1, scale_threads}, place.stream, p);
  });
}

} // namespace anl::cuda
