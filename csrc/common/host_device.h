// Marks functions of structs that kernels and hosts share.
#pragma once

#if defined(__CUDACC__)
#define SEGKERN_HOST_DEVICE __host__ __device__
#else
#define SEGKERN_HOST_DEVICE
#endif
