// The kernels for the baseline of the compiler's target.
#define ANL_MODULE _cpu_default
#include "kernels.h"
