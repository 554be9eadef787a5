# In the place of torch's own: what a package asks of it when it configures, with nothing behind it.
# From expected.py: STAGECRAFT_CUDA ("13.0"), STAGECRAFT_NVCC (version), STAGECRAFT_GENCODE (flags that torch's
# select_compute_arch.cmake makes of TORCH_CUDA_ARCH_LIST), STAGECRAFT_TORCH (version), STAGECRAFT_MOCK (directory).
include(CheckLanguage)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(CUDA_FOUND TRUE)
set(CUDA_VERSION "${STAGECRAFT_CUDA}")
set(CUDA_TOOLKIT_ROOT_DIR "${STAGECRAFT_MOCK}/cuda")
# As torch does: CMake adds no flags of its own, those of the list are in CMAKE_CUDA_FLAGS.
set(CMAKE_CUDA_ARCHITECTURES OFF)
string(APPEND CMAKE_CUDA_FLAGS " ${STAGECRAFT_GENCODE}")
set(Torch_VERSION "${STAGECRAFT_TORCH}")
set(TORCH_INSTALL_PREFIX "${STAGECRAFT_MOCK}/torch")
set(TORCH_INCLUDE_DIRS "${STAGECRAFT_MOCK}/torch/include")
set(TORCH_CXX_FLAGS "")
set(TORCH_LIBRARIES torch)
foreach(name torch torch_library c10 c10_cuda torch_cpu torch_cuda)
  if(NOT TARGET ${name})
    add_library(${name} INTERFACE IMPORTED GLOBAL)
  endif()
endforeach()
set(TORCH_FOUND TRUE)
set(Torch_FOUND TRUE)
