#include "esp.h"

#include "../common/launch.cuh"
#include "esp_launch.cuh"

namespace segkern {

void launch_esp_pyramid(const EspParams& params, void* reduced, void* packed,
                        cudaStream_t stream) {
  esp_pyramid(params, reduced, packed, CudaLauncher{stream});
}

}  // namespace segkern
