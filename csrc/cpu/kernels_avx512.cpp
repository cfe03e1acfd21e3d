// The kernels for AVX-512.
#define ANL_MODULE _cpu_avx512
#include "kernels.h"
