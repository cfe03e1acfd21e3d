// The kernels for AVX2.
#define ANL_MODULE _cpu_avx2
#include "kernels.h"
