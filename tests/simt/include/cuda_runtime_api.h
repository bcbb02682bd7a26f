// The runtime API header: here the same as cuda_runtime.h.
#pragma once
#include "cuda_runtime.h"
