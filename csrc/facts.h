// What both modules of facts say: the functors, and what compiled them.
#pragma once

#include "terms.h"

#include <string>
#include <vector>

namespace anl {

inline std::vector<std::string> functor_names() {
#define ANL_NAME(name, F) name,
  return {ANL_FOR_EACH_FUNCTOR(ANL_NAME)};
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
