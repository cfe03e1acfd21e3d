// What both modules of facts say: the functors, the outputs, and what compiled them.
#pragma once

#include "tensors.h"
#include "terms.h"

#include <string>
#include <vector>

namespace anl {

inline std::vector<std::string> functor_names() {
#define ANL_NAME(name, F) name,
  return {ANL_FOR_EACH_FUNCTOR(ANL_NAME)};
#undef ANL_NAME
}

// Those whose sum needs the row's lse.
inline std::vector<std::string> dense_functors() {
  std::vector<std::string> names;
#define ANL_ADD_IF_DENSE(name, F)                                                                  \
  if (F<double>::sum == Sum::Dense)                                                                \
    names.push_back(name);
  ANL_FOR_EACH_FUNCTOR(ANL_ADD_IF_DENSE)
#undef ANL_ADD_IF_DENSE
  return names;
}

// The outputs that a request names, in the order of their bits.
inline std::vector<std::string> row_outputs() {
#define ANL_NAME(type, name, columns) #name,
  return {ANL_FOR_EACH_OUTPUT(ANL_NAME)};
#undef ANL_NAME
}

inline std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#elif defined(_MSC_VER)
  return "MSVC " + std::to_string(_MSC_VER);
#else
  return "unknown";
#endif
}

} // namespace anl
